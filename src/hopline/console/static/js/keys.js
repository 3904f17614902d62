// The keyboard: `/` to search, `j` and `k` over rows, Enter opens one, `g` and a letter goes to a page, `?` tells.

const SEQUENCE_MS = 1200;
const PLACES = { f: "flow", d: "dead", q: "queues", s: "scheduled", w: "workers", m: "mailbox", a: "audit" };
const HELP = [
  ["Search", ["/"]],
  ["Next row, row before", ["j", "k"]],
  ["Open the row", ["Enter"]],
  ["Flow", ["g", "f"]],
  ["Dead letters", ["g", "d"]],
  ["Queues", ["g", "q"]],
  ["Scheduled", ["g", "s"]],
  ["Workers", ["g", "w"]],
  ["Audit", ["g", "a"]],
  ["This help", ["?"]],
];

let goingUntil = 0;

/** @param {number} step */
function moveRow(step) {
  const rows = /** @type {HTMLElement[]} */ ([...document.querySelectorAll("[data-row]")]);
  const here = rows.findIndex((row) => row === document.activeElement || row.contains(document.activeElement));
  const next = rows[here < 0 ? (step > 0 ? 0 : rows.length - 1) : Math.min(Math.max(here + step, 0), rows.length - 1)];
  if (!next) return;
  next.tabIndex = -1;
  next.focus({ preventScroll: true });
  next.scrollIntoView({ block: "nearest" });
}

function openRow() {
  const row = document.activeElement?.closest("[data-row]");
  if (row === document.activeElement) row?.querySelector("a")?.click();
}

/** @param {string} key */
function goTo(key) {
  const place = PLACES[/** @type {keyof typeof PLACES} */ (key)];
  const link = place && document.querySelector(`[data-place="${place}"]`);
  if (link instanceof HTMLAnchorElement) link.click();
}

function showHelp() {
  if (document.querySelector("dialog[open]")) return;
  const dialog = document.createElement("dialog");
  dialog.setAttribute("aria-label", "Keys");
  const title = document.createElement("h2");
  title.textContent = "Keys";
  const list = document.createElement("dl");
  list.className = "keys";
  for (const [text, keys] of HELP) {
    const term = document.createElement("dt");
    term.textContent = String(text);
    const value = document.createElement("dd");
    value.append(.../** @type {string[]} */ (keys).map(keyOf));
    list.append(term, value);
  }
  dialog.append(title, list);
  dialog.addEventListener("close", () => dialog.remove());
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  document.body.append(dialog);
  dialog.showModal();
}

/** @param {string} key */
function keyOf(key) {
  const element = document.createElement("kbd");
  element.textContent = key;
  return element;
}

/**
 * @param {string} key
 * @returns {boolean} whether it was one of ours
 */
function pressed(key) {
  if (goingUntil > performance.now() && key in PLACES) goTo(key);
  else if (key === "/") document.getElementById("search")?.focus();
  else if (key === "j") moveRow(1);
  else if (key === "k") moveRow(-1);
  else if (key === "?") showHelp();
  else if (key !== "g") return false;
  goingUntil = key === "g" ? performance.now() + SEQUENCE_MS : 0;
  return true;
}

/** @param {EventTarget | null} target */
const takesText = (target) =>
  target instanceof HTMLElement && (target.isContentEditable || /^(INPUT|TEXTAREA|SELECT)$/.test(target.tagName));

/** Starts. */
export function startKeys() {
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
    if (event.key === "Escape" && event.target === document.getElementById("search")) document.getElementById("search")?.blur();
    if (takesText(event.target) || document.querySelector("dialog[open]")) return;
    if (event.key === "Enter") openRow();
    else if (pressed(event.key)) event.preventDefault();
  });
  document.addEventListener("click", (event) => {
    if (event.target instanceof Element && event.target.closest("[data-keys]")) showHelp();
  });
}

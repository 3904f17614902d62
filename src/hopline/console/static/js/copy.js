// Buttons with `data-copy` put its text on the clipboard.

const SHOWN_MS = 1500;

/**
 * @param {string} text
 * @returns {Promise<boolean>} whether it is on the clipboard
 */
async function copy(text) {
  try {
    await navigator.clipboard.writeText(text); // only under https and on this machine
    return true;
  } catch {
    return copyBySelection(text);
  }
}

/**
 * @param {string} text
 * @returns {boolean}
 */
function copyBySelection(text) {
  const area = document.createElement("textarea");
  area.value = text;
  area.className = "visually-hidden";
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  return done;
}

/** Starts. */
export function startCopying() {
  document.addEventListener("click", async (event) => {
    const button = event.target instanceof Element ? event.target.closest("[data-copy]") : null;
    if (!(button instanceof HTMLElement)) return;
    const before = button.getAttribute("aria-label") ?? "";
    if (button.dataset.done !== undefined || !(await copy(button.dataset.copy ?? ""))) return;
    button.dataset.done = "";
    button.setAttribute("aria-label", "Copied");
    setTimeout(() => {
      delete button.dataset.done;
      button.setAttribute("aria-label", before);
    }, SHOWN_MS);
  });
}

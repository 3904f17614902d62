// A question before an act: <details data-confirm> opens in place without JavaScript; here its form becomes a dialog,
// which keeps the focus, closes by Escape, and gives the form back when it is closed.

/**
 * @param {HTMLDetailsElement} details
 * @param {HTMLElement} panel
 */
function ask(details, panel) {
  const dialog = document.createElement("dialog");
  const title = panel.querySelector(".confirm-title");
  if (title) {
    title.id ||= `confirm-${crypto.getRandomValues(new Uint32Array(1))[0]}`;
    dialog.setAttribute("aria-labelledby", title.id);
  }
  dialog.append(panel);
  document.body.append(dialog);
  dialog.addEventListener("click", (event) => {
    const on = event.target;
    if (on === dialog || (on instanceof Element && on.closest("[data-cancel]"))) dialog.close();
  });
  dialog.addEventListener("close", () => {
    details.append(panel);
    dialog.remove();
    details.querySelector("summary")?.focus();
  });
  dialog.showModal();
  const first = panel.querySelector("input:not([type=hidden]), textarea, select") ?? panel.querySelector("[data-cancel]");
  if (first instanceof HTMLElement) first.focus();
}

/** Starts. */
export function startConfirming() {
  document.addEventListener("click", (event) => {
    const summary = event.target instanceof Element ? event.target.closest("details[data-confirm] > summary") : null;
    const details = summary?.parentElement;
    const panel = details?.querySelector(".confirm-panel");
    if (!(details instanceof HTMLDetailsElement) || !(panel instanceof HTMLElement)) return;
    event.preventDefault();
    ask(details, panel);
  });
}

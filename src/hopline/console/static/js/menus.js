// Menus are <details>: they open without JavaScript. With it, a click elsewhere or Escape closes them, and notices that
// have been read can be closed.

/**
 * @param {Element | null} except
 */
function closeMenus(except) {
  for (const menu of document.querySelectorAll("details[data-menu][open]")) {
    if (menu !== except) menu.removeAttribute("open");
  }
}

/** Starts. */
export function startMenus() {
  document.addEventListener("click", (event) => {
    if (!(event.target instanceof Element)) return;
    closeMenus(event.target.closest("details[data-menu]"));
    if (event.target.closest("[data-close]")) event.target.closest(".notice")?.remove();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    const open = document.querySelector("details[data-menu][open]");
    closeMenus(null);
    open?.querySelector("summary")?.focus();
  });
}

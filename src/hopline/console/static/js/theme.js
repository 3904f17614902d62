// Light, dark, or as the system has it: chosen by one button, kept in a cookie, so that the server writes it into the
// next page and nothing flickers.

const THEMES = ["system", "light", "dark"];
const YEAR_SECONDS = 31_536_000;

/** Told on the document when the colours have changed. */
export const THEME_CHANGED = "hopline:theme";

/** @param {string} theme */
function show(theme) {
  const root = document.documentElement;
  root.dataset.theme = theme;
  for (const button of document.querySelectorAll("[data-theme-switch]")) {
    button.setAttribute("aria-label", `Theme: ${theme}`);
    button.setAttribute("title", `Theme: ${theme}`);
    for (const icon of button.querySelectorAll("[data-theme-icon]")) {
      icon.toggleAttribute("hidden", icon.getAttribute("data-theme-icon") !== theme);
    }
  }
  document.dispatchEvent(new CustomEvent(THEME_CHANGED));
}

/** @param {string} theme */
function keep(theme) {
  const path = document.body.dataset.root ?? "/";
  const secure = location.protocol === "https:" ? "; secure" : "";
  document.cookie = `hopline_theme=${theme}; path=${path}; max-age=${YEAR_SECONDS}; samesite=strict${secure}`;
}

/** Starts. */
export function startTheme() {
  document.addEventListener("click", (event) => {
    if (!(event.target instanceof Element) || !event.target.closest("[data-theme-switch]")) return;
    const now = THEMES.indexOf(document.documentElement.dataset.theme ?? "system");
    const next = THEMES[(now + 1) % THEMES.length];
    keep(next);
    show(next);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    document.dispatchEvent(new CustomEvent(THEME_CHANGED));
  });
}

// Keeps relative times true while a page is open: "12 s ago". The server wrote them the same way; the absolute time
// stays in `datetime` and in the title.

const EVERY_MS = 1000;
const RELATIVE = / ago$|^in |^just now$/;
const UNITS = /** @type {const} */ ([
  ["s", 1, 120],
  ["min", 60, 7_200],
  ["h", 3_600, 172_800],
]);

let skewMs = 0;

/**
 * Takes over the server's clock, so that a browser whose clock is wrong shows the same times as the server.
 * @param {string} at ISO 8601
 */
export function follow(at) {
  const found = Date.parse(at) - Date.now();
  if (Number.isFinite(found)) skewMs = Math.abs(found) > 2000 ? found : 0;
}

/**
 * A time span in its largest unit: 0.8 ms, 120 ms, 1.2 s, 12 s, 5 min, 3 h, 2 d.
 * @param {number} seconds
 * @returns {string}
 */
export function duration(seconds) {
  if (seconds < 0.01) return `${(seconds * 1000).toFixed(seconds === 0 ? 0 : 1)}\u202fms`;
  if (seconds < 1) return `${(seconds * 1000).toFixed(0)}\u202fms`;
  if (seconds < 10) return `${seconds.toFixed(1)}\u202fs`;
  for (const [unit, size, until] of UNITS) {
    if (seconds < until) return `${(seconds / size).toFixed(0)}\u202f${unit}`;
  }
  return `${(seconds / 86_400).toFixed(0)}\u202fd`;
}

/**
 * @param {number} seconds how long ago; negative: in the future
 * @returns {string}
 */
function relative(seconds) {
  if (seconds < -0.5) return `in ${duration(-seconds)}`;
  if (seconds < 1) return "just now";
  return `${duration(Math.floor(seconds))} ago`;
}

function refresh() {
  if (document.hidden) return;
  const now = Date.now() + skewMs;
  for (const element of document.querySelectorAll("time[datetime]")) {
    const text = element.textContent ?? "";
    if (!RELATIVE.test(text)) continue;
    const fresh = relative((now - Date.parse(element.getAttribute("datetime") ?? "")) / 1000);
    if (fresh !== text && !fresh.includes("NaN")) element.textContent = fresh;
  }
}

/** Starts. */
export function startTimes() {
  setInterval(refresh, EVERY_MS);
}

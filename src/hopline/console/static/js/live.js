// The live page: one stream of server-sent events, told honestly. Snapshots fill [data-live] with texts and tones and
// [data-live-html] with fragments. The header says whether what is seen is live, or since when it is not.

import { morphHtml } from "./morph.js";
import { follow } from "./time.js";

/** Told on the document after each snapshot. */
export const SNAPSHOT = "hopline:snapshot";

const FIRST_RETRY_MS = 500;
const LONGEST_RETRY_MS = 15_000;
const STALE_MS = 12_000;
const HIDDEN_MS = 60_000;

/**
 * @typedef {{ text: string, tone?: string }} Value
 * @typedef {{ at: string, values?: Record<string, Value>, html?: Record<string, string> }} Snapshot
 */

/** @type {EventSource | null} */
let source = null;
let retryMs = FIRST_RETRY_MS;
/** @type {Date | null} */
let lostAt = null;
let retryTimer = 0;
let staleTimer = 0;
let hiddenTimer = 0;

/**
 * @param {"live" | "reconnecting" | "stale"} state
 * @param {string} text
 * @param {string} tone
 */
function show(state, text, tone) {
  const element = document.getElementById("live");
  if (!element) return;
  element.dataset.state = state;
  element.dataset.tone = tone;
  const label = element.querySelector(".live-text");
  if (label && label.textContent !== text) label.textContent = text;
}

/** @param {Date} time */
const clock = (time) => time.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit" });

function showLive() {
  lostAt = null;
  retryMs = FIRST_RETRY_MS;
  show("live", "live", "ok");
  clearTimeout(staleTimer);
  const since = new Date();
  staleTimer = window.setTimeout(() => show("stale", `no news since ${clock(since)}`, "warn"), STALE_MS);
}

/** @param {Snapshot} snapshot */
function apply(snapshot) {
  follow(snapshot.at);
  for (const element of document.querySelectorAll("[data-live]")) {
    const value = snapshot.values?.[element.getAttribute("data-live") ?? ""];
    if (!value) continue;
    if (element.textContent !== value.text) element.textContent = value.text;
    if (value.tone) element.closest("[data-tone]")?.setAttribute("data-tone", value.tone);
  }
  for (const element of document.querySelectorAll("[data-live-html]")) {
    const html = snapshot.html?.[element.getAttribute("data-live-html") ?? ""];
    if (html !== undefined) morphHtml(element, html);
  }
  document.dispatchEvent(new CustomEvent(SNAPSHOT, { detail: snapshot }));
}

/** @param {string} url */
function connect(url) {
  clearTimeout(retryTimer);
  source?.close();
  source = new EventSource(url);
  source.addEventListener("open", showLive);
  source.addEventListener("snapshot", (event) => {
    showLive();
    apply(/** @type {Snapshot} */ (JSON.parse(event.data)));
  });
  source.addEventListener("error", () => {
    disconnect();
    lostAt ??= new Date();
    show("reconnecting", `reconnecting since ${clock(lostAt)}`, "warn");
    retryTimer = window.setTimeout(() => connect(url), retryMs * (0.75 + Math.random() / 2));
    retryMs = Math.min(retryMs * 2, LONGEST_RETRY_MS);
  });
}

function disconnect() {
  clearTimeout(staleTimer);
  clearTimeout(retryTimer);
  source?.close();
  source = null;
}

/**
 * A page that nobody sees costs nothing: after a while it lets go of its stream.
 * @param {string} url
 */
function watchVisibility(url) {
  document.addEventListener("visibilitychange", () => {
    clearTimeout(hiddenTimer);
    if (document.hidden) hiddenTimer = window.setTimeout(disconnect, HIDDEN_MS);
    else if (!source) connect(url);
  });
}

/** Starts. */
export function startLive() {
  const url = document.body.dataset.events;
  if (!url) return;
  connect(url);
  watchVisibility(url);
  window.addEventListener("pagehide", disconnect);
  window.addEventListener("pageshow", (event) => event.persisted && connect(url));
  window.addEventListener("online", () => source ?? connect(url));
}

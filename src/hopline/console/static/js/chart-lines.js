// What is drawn of a history: which lines, in which unit, with which axes. Rates are counts over the seconds of their
// step that are known; a latency without work in its step is a gap, not a zero.

import { duration } from "./time.js";

/**
 * @typedef {"rate" | "latency"} Kind
 * @typedef {{ label: string, values: (number | null)[], tone?: string, dash?: number[] }} Line
 * @typedef {{ at: string, seconds: number, [name: string]: string | number | null }} Point
 * @typedef {{ endpoint: string | null, points: Point[] }} History
 * @typedef {{ text: string, grid: string, lines: string[] }} Colours
 */

const RATES = /** @type {const} */ ([
  ["done", "done"],
  ["retried", "retried"],
  ["deferred", "deferred"],
]);
const LATENCIES = /** @type {const} */ ([
  ["handler p50", "handler_p50"],
  ["handler p99", "handler_p99", [6, 4]],
  ["whole way p50", "total_p50"],
  ["whole way p99", "total_p99", [6, 4]],
]);

/**
 * @param {History} history
 * @param {Kind} kind
 * @returns {Line[]}
 */
export function linesOf(history, kind) {
  if (kind === "latency") {
    return LATENCIES.map(([label, name, dash]) => ({
      label,
      dash: dash && [...dash],
      values: history.points.map((point) => /** @type {number | null} */ (point[name] ?? null)),
    }));
  }
  const lines = [...(history.endpoint === null ? [["accepted", "accepted"]] : []), ...RATES, ["dead", "dead", "bad"]];
  return lines
    .map(([label, name, tone]) => ({ label, tone, values: history.points.map((point) => rateOf(point, name)) }))
    .filter(({ label, values }) => label === "done" || values.some(Boolean));
}

/**
 * @param {Point} point
 * @param {string} name
 * @returns {number | null}
 */
function rateOf(point, name) {
  return point.seconds > 0 ? Number(point[name] ?? 0) / point.seconds : null;
}

/**
 * @param {Kind} kind
 * @param {number | null} value
 * @returns {string}
 */
export function format(kind, value) {
  if (value === null) return "–";
  if (kind === "latency") return value === 0 ? "0" : duration(value);
  const digits = value === 0 || value >= 100 ? 0 : value >= 10 ? 1 : 2;
  return `${value.toLocaleString("en", { maximumFractionDigits: digits }).replaceAll(",", "\u202f")}/s`;
}

/**
 * @param {Kind} kind
 * @param {Colours} colours
 */
export function axesOf(kind, colours) {
  const font = `11px ${getComputedStyle(document.body).fontFamily}`;
  const shared = { stroke: colours.text, font, ticks: { show: false }, border: { show: false } };
  const line = { stroke: colours.grid, width: 1 };
  const times = [
    [3_600, "{HH}:{mm}", null, null, null, null, null, null, 1],
    [60, "{HH}:{mm}", null, null, null, null, null, null, 1],
    [1, "{HH}:{mm}:{ss}", null, null, null, null, null, null, 1],
  ];
  /** @type {(plot: unknown, values: number[]) => string[]} */
  const words = (_, values) => values.map((value) => format(kind, value));
  return [
    { ...shared, grid: { show: false }, values: times, space: 64, size: 28 },
    { ...shared, grid: line, values: words, space: 36, size: 62, gap: 8 },
  ];
}

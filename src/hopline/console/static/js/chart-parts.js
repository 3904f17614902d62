// What stands around a chart's picture: its keys with their values, the same figures as a table, and its colours.

import { format } from "./chart-lines.js";

/**
 * @typedef {import("./chart-lines.js").Kind} Kind
 * @typedef {import("./chart-lines.js").Line} Line
 */

/**
 * @param {Line} line
 * @param {number} place
 */
const classOf = (line, place) => (line.tone === "bad" ? "line-bad" : `line-${place + 1}`);

/** @param {(number | null)[]} values */
const lastOf = (values) => values.findLast((value) => value !== null) ?? null;

/**
 * @param {Line} line
 * @param {number} place
 */
function sampleOf(line, place) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const stroke = document.createElementNS("http://www.w3.org/2000/svg", "line");
  svg.setAttribute("class", classOf(line, place));
  svg.setAttribute("aria-hidden", "true");
  for (const [name, value] of Object.entries({ x1: 0, x2: 16, y1: 4, y2: 4 })) stroke.setAttribute(name, String(value));
  if (line.dash) stroke.setAttribute("stroke-dasharray", "4 3");
  svg.append(stroke);
  return svg;
}

/**
 * @param {Kind} kind
 * @param {Line[]} lines
 * @param {number | null} place whose values; null: the latest
 * @returns {HTMLElement[]}
 */
export function keysOf(kind, lines, place) {
  return lines.map((line, i) => {
    const key = document.createElement("span");
    key.className = "chart-key";
    const value = document.createElement("b");
    value.textContent = format(kind, place === null ? lastOf(line.values) : line.values[place]);
    key.append(sampleOf(line, i), line.label, value);
    return key;
  });
}

/**
 * What a picture says, in words.
 * @param {Kind} kind
 * @param {string} title
 * @param {Line[]} lines
 */
export function wordsOf(kind, title, lines) {
  const latest = lines.map((line) => `${line.label} ${format(kind, lastOf(line.values))}`);
  return `${title}, the latest: ${latest.join(", ")}`;
}

/**
 * @param {Kind} kind
 * @param {string} title
 * @param {number[]} times in seconds
 * @param {Line[]} lines
 */
export function tableOf(kind, title, times, lines) {
  const box = document.createElement("div");
  box.className = "table-box chart-table";
  box.tabIndex = 0;
  box.setAttribute("role", "region");
  box.setAttribute("aria-label", title);
  const table = document.createElement("table");
  table.className = "table";
  const head = table.createTHead().insertRow();
  head.append(cellOf("th", "Time"), ...lines.map((line) => cellOf("th", line.label, "number")));
  const body = table.createTBody();
  for (let i = times.length - 1; i >= 0; i--) {
    const values = lines.map((line) => cellOf("td", format(kind, line.values[i]), "number"));
    body.insertRow().append(cellOf("td", new Date(times[i] * 1000).toLocaleString()), ...values);
  }
  box.append(table);
  return box;
}

/**
 * @param {"th" | "td"} name
 * @param {string} text
 * @param {string} kind
 */
function cellOf(name, text, kind = "") {
  const cell = document.createElement(name);
  cell.textContent = text;
  if (kind) cell.className = kind;
  return cell;
}

/**
 * A canvas knows no custom properties: the colours are read from an element that has them.
 * @param {HTMLElement} within
 * @param {Line[]} lines
 * @returns {import("./chart-lines.js").Colours}
 */
export function coloursOf(within, lines) {
  const probe = document.createElement("span");
  within.append(probe);
  /** @param {string} name */
  const of = (name) => {
    probe.className = name;
    return getComputedStyle(probe).color;
  };
  const found = { text: of("chart-axis"), grid: of("chart-grid"), lines: lines.map((line, i) => of(classOf(line, i))) };
  probe.remove();
  return found;
}

// Charts of rates and latencies: each <figure data-chart> is filled from the JSON at its `data-url`, drawn again when
// the theme or the width changes, and kept fresh while it is seen. What is drawn is there as words (aria-label), as
// figures below it, and as a table too.

import uPlot from "../vendor/uplot.js";
import { axesOf, linesOf } from "./chart-lines.js";
import { coloursOf, keysOf, tableOf, wordsOf } from "./chart-parts.js";
import { SNAPSHOT } from "./live.js";
import { THEME_CHANGED } from "./theme.js";

const HEIGHT_PX = 190;
const FRESH_MS = 10_000;

/** @type {uPlot.Range.Function} */
const fromZero = (_plot, _least, most) => [0, most * 1.1 || 1];

/**
 * A step of work between two without is no line, so it is drawn as a point.
 * @type {uPlot.Series.Points.Filter}
 */
const lonely = (plot, series) => {
  const values = plot.data[series];
  /** @param {number} i */
  const isGap = (i) => values[i] === null || values[i] === undefined;
  return [...values.keys()].filter((i) => !isGap(i) && isGap(i - 1) && isGap(i + 1));
};

class Chart {
  /** @param {HTMLElement} figure */
  constructor(figure) {
    this.figure = figure;
    this.kind = figure.dataset.chart === "latency" ? /** @type {const} */ ("latency") : /** @type {const} */ ("rate");
    this.title = figure.dataset.title ?? "";
    this.picture = /** @type {HTMLElement} */ (figure.querySelector(".chart-picture"));
    this.legend = document.createElement("div");
    this.legend.className = "chart-legend";
    figure.append(this.legend);
    /** @type {uPlot | null} */
    this.plot = null;
    /** @type {import("./chart-lines.js").Line[]} */
    this.lines = [];
    /** @type {number[]} */
    this.times = [];
    this.loadedAt = -Infinity;
    this.asTable = false;
    new ResizeObserver(() => this.plot?.setSize(this.size())).observe(this.picture);
  }

  size() {
    return { width: Math.max(this.picture.clientWidth, 120), height: HEIGHT_PX };
  }

  /** Loads it, if what it shows is old and somebody sees it. */
  async refresh() {
    if (document.hidden || performance.now() - this.loadedAt < FRESH_MS) return;
    this.loadedAt = performance.now();
    try {
      const answer = await fetch(this.figure.dataset.url ?? "", { headers: { Accept: "application/json" } });
      if (!answer.ok) throw new Error(`the console answered ${answer.status}`);
      const history = /** @type {import("./chart-lines.js").History} */ (await answer.json());
      this.times = history.points.map((point) => Date.parse(point.at) / 1000);
      this.lines = linesOf(history, this.kind);
      this.show();
    } catch (error) {
      if (!this.lines.length) this.tell(`It could not be loaded: ${error instanceof Error ? error.message : error}`);
    }
  }

  show() {
    this.plot?.destroy();
    this.plot = null;
    delete this.picture.dataset.state;
    this.picture.replaceChildren();
    this.legend.replaceChildren();
    if (this.lines.every((line) => line.values.every((value) => !value))) this.tell("Nothing ran in this time.");
    else if (this.asTable) this.describe("group", this.title).append(tableOf(this.kind, this.title, this.times, this.lines));
    else this.draw();
  }

  /**
   * @param {string} role
   * @param {string} words
   */
  describe(role, words) {
    this.picture.setAttribute("role", role);
    this.picture.setAttribute("aria-label", words);
    return this.picture;
  }

  /** @param {string} text */
  tell(text) {
    const note = document.createElement("p");
    note.className = "chart-note";
    note.textContent = text;
    delete this.picture.dataset.state;
    this.describe("group", this.title).replaceChildren(note);
  }

  draw() {
    const colours = coloursOf(this.figure, this.lines);
    const points = { show: true, size: 4, filter: lonely };
    const series = this.lines.map((line, i) => ({ stroke: colours.lines[i], width: 1.75, points, dash: line.dash }));
    const options = {
      ...this.size(),
      padding: /** @type {uPlot.Padding} */ ([10, 8, 0, 0]),
      legend: { show: false },
      cursor: { y: false, drag: { x: false, y: false }, points: { size: 6 } },
      scales: { y: { range: fromZero } },
      axes: axesOf(this.kind, colours),
      series: [{}, ...series],
      hooks: { setCursor: [(/** @type {uPlot} */ plot) => this.showValues(plot.cursor.idx ?? null)] },
    };
    const picture = this.describe("img", wordsOf(this.kind, this.title, this.lines));
    this.plot = new uPlot(options, [this.times, ...this.lines.map((line) => line.values)], picture);
    this.showValues(null);
  }

  /** @param {number | null} place where the pointer is; null: the latest */
  showValues(place) {
    const time = document.createElement("span");
    time.textContent = place === null ? "latest" : new Date(this.times[place] * 1000).toLocaleTimeString();
    this.legend.replaceChildren(...keysOf(this.kind, this.lines, place), time);
  }
}

/** Starts. */
export function startCharts() {
  const figures = /** @type {HTMLElement[]} */ ([...document.querySelectorAll("[data-chart]")]);
  const charts = figures.map((figure) => new Chart(figure));
  const refresh = () => charts.forEach((chart) => void chart.refresh());
  refresh();
  document.addEventListener(SNAPSHOT, refresh);
  document.addEventListener("visibilitychange", refresh);
  document.addEventListener(THEME_CHANGED, () => charts.forEach((chart) => chart.plot && chart.show()));
  document.addEventListener("click", (event) => {
    const button = event.target instanceof Element ? event.target.closest("[data-chart-table]") : null;
    const chart = charts.find((one) => one.figure.contains(button));
    if (!button || !chart) return;
    chart.asTable = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", String(chart.asTable));
    if (chart.lines.length) chart.show();
  });
}

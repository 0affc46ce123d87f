// @ts-check
// A small line of numbers as SVG. Knows numbers; no axes, no words.

import { set, svg } from "./dom.js";

/**
 * A line; `draw` gives it new numbers.
 * @param {string} label what it shows, for a screen reader
 */
export function sparkline(label) {
  const line = svg("polyline", { class: "line" });
  const dot = svg("circle", { class: "dot", r: 3 });
  const props = { class: "spark", viewBox: "0 0 200 40", role: "img", "aria-label": label };
  const element = svg("svg", props, line, dot);

  /**
   * @param {readonly number[]} values
   * @param {number} at the number that is marked
   */
  function draw(values, at) {
    const most = Math.max(...values, 1e-9);
    const x = (/** @type {number} */ i) => (values.length > 1 ? 4 + (192 * i) / (values.length - 1) : 100);
    const y = (/** @type {number} */ value) => 36 - (32 * value) / most;
    set(line, "points", values.map((value, i) => `${x(i).toFixed(1)},${y(value).toFixed(1)}`).join(" "));
    set(dot, "cx", x(Math.max(0, at)));
    set(dot, "cy", y(values[at] ?? 0));
    element.toggleAttribute("hidden", values.length === 0);
  }

  return { element, draw };
}

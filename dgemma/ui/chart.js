// @ts-check
// A small line of numbers as SVG. Knows numbers; no axes, no words.

import { set, svg } from "./dom.js";

/** A line; `draw` gives it new numbers.
 * @param {string} label what it shows, for a screen reader */
export function sparkline(label) {
  const line = svg("polyline", { class: "line" });
  const dot = svg("line", { class: "dot", y1: 0, y2: 40 });
  const box = { viewBox: "0 0 200 40", preserveAspectRatio: "none" };
  const props = { class: "spark", ...box, role: "img", "aria-label": label };
  const element = svg("svg", props, line, dot);

  /** @param {readonly number[]} values
   * @param {number} at the number that is marked */
  function draw(values, at) {
    const most = Math.max(...values, 1e-9);
    const x = (/** @type {number} */ i) => (values.length > 1 ? 1 + (198 * i) / (values.length - 1) : 100);
    const y = (/** @type {number} */ value) => 36 - (32 * value) / most;
    set(line, "points", values.map((value, i) => `${x(i).toFixed(1)},${y(value).toFixed(1)}`).join(" "));
    for (const end of ["x1", "x2"]) set(dot, end, x(Math.max(0, at)));
    element.toggleAttribute("hidden", values.length === 0);
  }

  return { element, draw };
}

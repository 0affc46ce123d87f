// @ts-check
// A run on the screen: its grid, draft, counts and heat map at one pass. Knows traces; the player and
// the requests are its owner's.

import { sparkline } from "./chart.js";
import { h, text } from "./dom.js";
import { grid } from "./grid.js";
import { changed, heat } from "./heat.js";
import { server } from "./server.js";
import { counts, draft, meanNats } from "./tokens.js";
import { outcome } from "./trace.js";

/** @typedef {import("./trace.js").Trace} Trace */

/** @param {{ title: string, choose: (position: number) => void, go: (pass: number) => void }} options */
export function track({ title, choose, go }) {
  const cells = grid({ label: `${title}: the canvas`, choose });
  const map = heat({ go, choose });
  const line = sparkline("Mean entropy over the passes");
  const heading = h("h2", null, title);
  const chips = h("div", { class: "chips" });
  const numbers = h("p", { class: "counts" });
  const textTitle = h("h3", null, "Draft");
  const scroller = { tabindex: 0, role: "group", "aria-label": "Text of this pass" };
  const words = h("div", { class: "draft", dir: "auto", ...scroller });
  const ending = h("p", { class: "counts" });
  const element = h("section", { class: "track card", "aria-label": title },
    h("header", null, heading, chips, numbers),
    cells.element,
    h("div", { class: "below" },
      h("div", { class: "text" }, textTitle, words, ending),
      h("div", { class: "overview" }, h("h3", null, "All passes"), map.element, line.element)));
  /** @type {Trace | null} */
  let trace = null;
  /** @type {number[]} */
  let means = [];

  /** @param {Trace | null} value a new trace; its frames may still come */
  function use(value) {
    trace = value;
    means = [];
    cells.clear();
    cells.mark(-1);
    for (const one of [numbers, words, ending]) text(one, "");
    map.draw([], -1);
    line.draw([], -1);
  }

  /** Shows a pass, or the last one if there are fewer.
   * @param {number} pass
   * @param {Trace | null} [other] a trace to compare with */
  function draw(pass, other = null) {
    const index = Math.min(pass, (trace?.frames.length ?? 0) - 1);
    const frame = trace?.frames[index];
    if (!trace || !frame) return;
    const { controls, ends } = server.get();
    const before = trace.frames[index - 1];
    const sameCanvas = before?.canvas === frame.canvas ? before : null;
    const beside = other?.frames[Math.min(index, other.frames.length - 1)] ?? null;
    cells.draw(frame, sameCanvas, trace.pieces, controls, beside);
    map.draw(trace.frames, index);
    for (const one of trace.frames.slice(means.length)) means.push(meanNats(one.entropy));
    line.draw(means, index);
    const [renoised, accepted, pinned] = counts(frame.state);
    const told = [`● ${accepted} accepted`, `○ ${renoised} re-noised`];
    if (pinned) told.push(`◆ ${pinned} pinned`);
    told.push(`${changed(frame, before)} changed`, `${means[index].toFixed(2)} nats`);
    if (frame.temperature !== null) told.push(`T ${frame.temperature.toFixed(2)}`);
    if (frame.t_ms !== null) told.push(`${(frame.t_ms / 1000).toFixed(2)} s`);
    text(numbers, facts(told));
    const whole = trace.end && index === trace.frames.length - 1;
    text(textTitle, whole ? "Answer" : "Draft");
    text(ending, facts(outcome(trace)));
    text(words, whole ? trace.text : draftUpTo(trace, index, ends, controls));
  }

  return { element, use, draw, chips, mark: cells.mark, get trace() { return trace; } };
}

/** Facts side by side, each on one line.
 * @param {string[]} told */
function facts(told) {
  return told.map((one) => one.replaceAll(" ", "\u00a0")).join("   ");
}

/** The text up to a pass: canvases that are done, and the draft of the one that it shows.
 * @param {Trace} trace
 * @param {number} index
 * @param {Set<number>} ends
 * @param {import("./tokens.js").Controls} controls */
export function draftUpTo(trace, index, ends, controls) {
  const { frames, pieces } = trace;
  const shown = frames.slice(0, index + 1);
  const whole = shown.filter((one, at) => one.canvas !== shown[at + 1]?.canvas);
  return whole.map((one) => draft(one.ids, pieces, ends, controls)).join("");
}

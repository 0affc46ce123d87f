// @ts-check
// All passes of a run as a picture, a pixel for each position, with a table behind a button.
// Knows frames; not how they are played.

import { h, put } from "./dom.js";
import { counts, level, meanNats } from "./tokens.js";

/** @typedef {import("./trace.js").Frame} Frame */

const LEVELS = 17;

/** A heat map: positions across, passes down.
 * @param {{ go: (pass: number) => void, choose: (position: number) => void }} options what a click does */
export function heat({ go, choose }) {
  const label = "Entropy of every position in every pass";
  const canvas = h("canvas", { role: "img", "aria-label": label, width: 1, height: 1 });
  const now = h("div", { class: "heat-now" });
  const probe = h("div", { class: "cell", hidden: true });
  const picture = h("div", { class: "heat-map" }, canvas, now, probe);
  const region = { class: "heat-table", hidden: true, tabindex: 0, role: "region", "aria-label": "Passes" };
  const table = h("div", region);
  const about = { type: "button", class: "quiet", "aria-expanded": false, onclick: toggle };
  const button = h("button", about, "Show as a table");
  const element = h("div", { class: "heat" }, picture, button, table);
  const brush = /** @type {CanvasRenderingContext2D} */ (context(canvas));
  /** @type {readonly Frame[]} */
  let frames = [];
  let painted = 0; // rows that are on the canvas
  /** @type {Uint8ClampedArray[]} */
  let colours = [];

  canvas.addEventListener("click", (event) => {
    const box = canvas.getBoundingClientRect();
    go(Math.floor(((event.clientY - box.top) / box.height) * canvas.height));
    choose(Math.floor(((event.clientX - box.left) / box.width) * canvas.width));
  });
  const repaint = () => {
    colours = [];
    painted = 0;
    draw(frames, shown);
  };
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
  document.addEventListener("dgemma-theme", repaint);
  let shown = -1;

  /** The colours of the cells, as the style sheet and the theme have them. */
  function palette() {
    const one = /** @type {CanvasRenderingContext2D} */ (context(h("canvas", { width: LEVELS, height: 1 })));
    for (let at = 0; at < LEVELS; at++) {
      probe.className = `cell heat-probe e${at}`;
      one.fillStyle = getComputedStyle(probe).backgroundColor;
      one.fillRect(at, 0, 1, 1);
    }
    return Array.from({ length: LEVELS }, (_, at) => one.getImageData(at, 0, 1, 1).data);
  }

  /** Paints passes that are new and outlines the one that is shown.
   * @param {readonly Frame[]} all
   * @param {number} index */
  function draw(all, index) {
    const width = Math.max(1, ...all.map((one) => one.ids.length));
    [frames, shown] = [all, index];
    if (!colours.length) colours = palette();
    if (painted > all.length || canvas.width !== width) painted = 0;
    if (canvas.height !== all.length || !painted) {
      const kept = painted ? brush.getImageData(0, 0, width, painted) : null;
      [canvas.width, canvas.height] = [width, Math.max(1, all.length)];
      if (kept) brush.putImageData(kept, 0, 0);
    }
    for (; painted < all.length; painted++) {
      const row = brush.createImageData(width, 1);
      all[painted].entropy.forEach((byte, at) => row.data.set(colours[level(byte)], 4 * at));
      brush.putImageData(row, 0, painted);
    }
    picture.hidden = button.hidden = all.length === 0;
    picture.style.setProperty("--passes", String(Math.max(1, all.length)));
    now.style.setProperty("--pass", String(Math.max(0, index)));
    if (!table.hidden) fill();
  }

  function toggle() {
    table.hidden = !table.hidden;
    button.setAttribute("aria-expanded", String(!table.hidden));
    button.textContent = table.hidden ? "Show as a table" : "Hide the table";
    if (!table.hidden) fill();
  }

  function fill() {
    const heads = ["Pass", "Mean entropy", "Accepted", "Re-noised", "Pinned", "Changed"];
    const rows = frames.map((frame, at) => {
      const [renoised, accepted, pinned] = counts(frame.state);
      const mean = `${meanNats(frame.entropy).toFixed(3)} nats`;
      const moved = changed(frame, frames[at - 1]);
      const cells = [frame.step + 1, mean, accepted, renoised, pinned, moved];
      return h("tr", null, cells.map((one) => h("td", null, one)));
    });
    const head = h("tr", null, heads.map((one) => h("th", { scope: "col" }, one)));
    put(table, h("table", null, h("thead", null, head), h("tbody", null, rows)));
  }

  return { element, draw };
}

/** @param {HTMLCanvasElement} canvas */
function context(canvas) {
  return canvas.getContext("2d", { willReadFrequently: true });
}

/** How many positions a pass has changed.
 * @param {Frame} frame
 * @param {Frame | undefined} before */
export function changed(frame, before) {
  if (before?.canvas !== frame.canvas) return 0;
  return frame.ids.reduce((sum, id, at) => sum + Number(before.ids[at] !== id), 0);
}

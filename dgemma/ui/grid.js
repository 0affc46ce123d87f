// @ts-check
// A canvas as a grid of cells, made once and then only rewritten. Knows cells, focus and choice;
// not where tokens come from.

import { h, set } from "./dom.js";
import { SHAPES, STATES, cells, level, nats, spoken } from "./tokens.js";

/** @typedef {import("./trace.js").Frame} Frame */
/** @typedef {{ element: HTMLElement, node: Text, text: string, look: string }} Cell */

/** A grid.
 * @param {{ label: string, choose: (position: number) => void }} options */
export function grid({ label, choose }) {
  /** @type {Cell[]} */
  const all = [];
  let [width, stop, chosen] = [0, 0, -1];
  /** @type {{ frame: Frame, pieces: import("./tokens.js").Pieces } | null} */
  let drawn = null;
  const element = h("div", { class: "grid", role: "listbox", "aria-label": label });

  element.addEventListener("click", (event) => pick(positionOf(event.target)));
  element.addEventListener("focusin", (event) => settle(positionOf(event.target)));
  element.addEventListener("keydown", (event) => {
    const at = positionOf(event.target);
    const to = {
      ArrowLeft: at - 1, ArrowRight: at + 1, ArrowUp: at - columns(), ArrowDown: at + columns(),
      Home: 0, End: width - 1,
    }[event.key];
    if (at < 0 || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Enter") pick(at);
    else if (to === undefined) return;
    else if (to >= 0 && to < width) all[to].element.focus();
    event.preventDefault();
    event.stopPropagation();
  });

  /** @param {EventTarget | null} target */
  function positionOf(target) {
    const cell = target instanceof Element ? target.closest("[role=option]") : null;
    return cell ? Number(cell.getAttribute("data-at")) : -1;
  }

  function columns() {
    return getComputedStyle(element).gridTemplateColumns.split(" ").length;
  }

  /** @param {number} at */
  function pick(at) {
    if (at < 0) return;
    mark(at);
    choose(at);
  }

  /** @param {number} at the position that is outlined; -1: none */
  function mark(at) {
    for (const [one, on] of /** @type {[number, boolean][]} */ ([[chosen, false], [at, true]])) {
      if (all[one]) set(all[one].element, "aria-selected", on);
    }
    chosen = at;
    if (at >= 0) settle(at);
  }

  /** Moves the one tab stop; the cell under it alone has a label that is kept current. @param {number} at */
  function settle(at) {
    if (!all[at]) return;
    if (at !== stop && all[stop]) {
      all[stop].element.tabIndex = -1;
      set(all[stop].element, "aria-label", null);
    }
    stop = at;
    all[at].element.tabIndex = 0;
    describe();
  }

  function describe() {
    if (!drawn || stop >= drawn.frame.ids.length) return;
    const { frame, pieces } = drawn;
    const piece = pieces.get(frame.ids[stop]);
    const words = typeof piece === "string" ? spoken(piece) : all[stop].text;
    const about = `${words}, ${STATES[frame.state[stop]]}, ${nats(frame.entropy[stop])} nats`;
    set(all[stop].element, "aria-label", `position ${stop}: ${about}`);
  }

  /** @param {number} count */
  function resize(count) {
    for (let at = all.length; at < count; at++) {
      const node = document.createTextNode("");
      const props = { class: "cell", role: "option", "data-at": at, tabindex: -1, "aria-selected": false };
      const cell = h("div", props, node);
      all.push({ element: cell, node, text: "", look: "cell" });
      element.append(cell);
    }
    for (let at = 0; at < all.length; at++) all[at].element.hidden = at >= count;
    width = count;
    if (stop >= count) settle(0);
    if (count && all[stop].element.tabIndex !== 0) settle(stop);
  }

  /** Shows a pass. A cell that is as before is not touched; another is written once.
   * @param {Frame} frame
   * @param {Frame | null} before the pass before on the same canvas
   * @param {import("./tokens.js").Pieces} pieces
   * @param {import("./tokens.js").Controls} controls
   * @param {Frame | null} [other] a frame to compare with: cells that differ are marked */
  function draw(frame, before, pieces, controls, other = null) {
    if (frame.ids.length !== width) resize(frame.ids.length);
    drawn = { frame, pieces };
    const shown = cells(frame.ids, pieces, controls);
    for (let at = 0; at < width; at++) {
      const [cell, { text, kind }, id] = [all[at], shown[at], frame.ids[at]];
      if (cell.text !== text) cell.node.data = cell.text = text;
      const moved = before && before.ids[at] !== id ? " moved" : "";
      const apart = other && other.ids[at] !== id ? " apart" : "";
      const look = `cell s${frame.state[at]} e${level(frame.entropy[at])} ${kind}${moved}${apart}`;
      if (cell.look !== look) cell.element.className = cell.look = look;
    }
    describe();
  }

  /** Empties the grid; the cells stay for the next run. */
  function clear() {
    drawn = null;
    resize(0);
  }

  return { element, draw, mark, clear, focus: (/** @type {number} */ at) => all[at]?.element.focus() };
}

/** What shapes and colours mean. */
export function legend() {
  const shapes = STATES.map((state, i) => h("li", null, h("span", { class: `key s${i}` }, SHAPES[i]), state));
  return h("ul", { class: "legend" },
    shapes,
    h("li", null, h("span", { class: "key moved" }, "ab"), "changed in this pass"),
    h("li", null, "sure", h("span", { class: "ramp", "aria-hidden": true }), "unsure"));
}

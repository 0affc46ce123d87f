// @ts-check
// What is known of one position: its token, its history over the passes, its alternatives.
// Knows traces; not how forks are run.

import { h, put } from "./dom.js";
import { SHAPES, STATES, nats, percent, shorten, shown, spoken } from "./tokens.js";

/** @typedef {import("./trace.js").Trace} Trace */
/** @typedef {import("./forks.js").Act} Act */

/** @param {{ close: () => void, act: (act: Act) => void, canAct: () => boolean,
 *   go: (pass: number) => void }} options `act` makes a fork, if the server can */
export function inspector({ close, act, canAct, go }) {
  const body = h("div", { class: "inspector-body" });
  const title = h("h2", null, "Position");
  const button = h("button", { type: "button", class: "quiet", onclick: close }, "Close");
  const element = h("section", { class: "inspector card", "aria-label": "Inspector", hidden: true },
    h("header", null, title, button), body);
  /** @type {any[]} what is shown now */
  let last = [];

  /** @param {Trace} trace
   * @param {number} pass the frame; the last one if there are fewer
   * @param {number} at the position; -1: none is chosen
   * @param {import("./tokens.js").Controls} controls */
  function show(trace, pass, at, controls) {
    const index = Math.min(pass, trace.frames.length - 1);
    const frame = trace.frames[index];
    element.hidden = !frame || at < 0 || at >= frame.ids.length;
    const now = [trace, index, at, trace.frames.length];
    if (element.hidden || now.every((one, i) => one === last[i])) return;
    last = now;
    const id = frame.ids[at];
    const piece = trace.pieces.get(id);
    const bytes = typeof piece === "string" ? new TextEncoder().encode(piece) : piece ?? [];
    const token = shown(id, trace.pieces, controls);
    title.textContent = `Position ${at}`;
    const facts = [
      ["Token", h("bdi", { class: `piece ${token.kind}` }, shorten(token.text, 40))],
      ["In words", typeof piece === "string" ? shorten(spoken(piece), 60) : null],
      ["Id", id],
      ["Bytes", Array.from(bytes, (one) => one.toString(16).padStart(2, "0")).slice(0, 24).join(" ")],
      ["State", `${SHAPES[frame.state[at]]} ${STATES[frame.state[at]]}`],
      ["Entropy", `${nats(frame.entropy[at])} nats`],
    ];
    put(body,
      h("dl", null, facts.filter(([, value]) => value !== null && value !== "").map(([name, value]) =>
        [h("dt", null, name), h("dd", null, value)])),
      canAct() && h("div", { class: "buttons" },
        h("button", { type: "button", onclick: () => act({ do: "renoise" }) }, "Re-noise from here")),
      frame.alternatives && alternatives(trace, frame.alternatives[at], controls),
      history(trace, index, at, controls));
  }

  /** @param {Trace} trace
   * @param {[number, number][]} found
   * @param {import("./tokens.js").Controls} controls */
  function alternatives(trace, found, controls) {
    const rest = 1 - found.reduce((sum, [, logprob]) => sum + Math.exp(logprob), 0);
    const row = (/** @type {any} */ name, /** @type {number} */ logprob, /** @type {any} */ buttons) =>
      h("li", { style: { "--share": Math.min(1, Math.exp(logprob)) } },
        h("bdi", { class: "piece" }, name), h("span", { class: "share" }, percent(logprob)), buttons);
    return [h("h3", null, "Alternatives in this pass"), h("ol", { class: "alternatives" },
      found.map(([id, logprob]) => {
        const text = shorten(shown(id, trace.pieces, controls).text, 24);
        const button = (/** @type {"pin" | "ban"} */ what) => {
          const props = { type: "button", class: "quiet", "aria-label": `${what} ${text}` };
          return h("button", { ...props, onclick: () => act({ do: what, id }) }, what);
        };
        return row(text, logprob, canAct() && h("span", { class: "buttons" }, button("pin"), button("ban")));
      }),
      row("others", Math.log(Math.max(rest, 1e-9)), null))];
  }

  /** Stretches of passes in which the position held the same token in the same state.
   * @param {Trace} trace
   * @param {number} index
   * @param {number} at
   * @param {import("./tokens.js").Controls} controls */
  function history(trace, index, at, controls) {
    const { canvas } = trace.frames[index];
    /** @type {{ first: number, last: number, id: number, state: number }[]} */
    const found = [];
    trace.frames.forEach((frame, pass) => {
      if (frame.canvas !== canvas || at >= frame.ids.length) return;
      const [id, state, last] = [frame.ids[at], frame.state[at], found.at(-1)];
      if (last?.id === id && last.state === state) last.last = pass;
      else found.push({ first: pass, last: pass, id, state });
    });
    const step = (/** @type {number} */ pass) => trace.frames[pass].step + 1;
    return [h("h3", null, "Over the passes"), h("ol", { class: "history" }, found.map((one) => {
      const here = index >= one.first && index <= one.last;
      const span = one.first === one.last ? step(one.first) : `${step(one.first)}–${step(one.last)}`;
      const text = shorten(shown(one.id, trace.pieces, controls).text, 24);
      const props = { type: "button", class: "quiet", "aria-current": here ? "step" : null };
      return h("li", null, h("button", { ...props, onclick: () => go(one.first) },
        h("span", { class: "span" }, span),
        h("span", { "aria-label": STATES[one.state], role: "img" }, SHAPES[one.state]),
        h("bdi", { class: "piece" }, text)));
    }))];
  }

  return { element, show };
}

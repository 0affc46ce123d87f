// @ts-check
// Plays the passes of a run by its own clock. Knows how many there are; not what a pass is.

import { h, icon, set, text } from "./dom.js";
import { remember, remembered, store } from "./store.js";

/** @typedef {{ index: number, count: number, playing: boolean, open: boolean, pace: number }} State */

const PACES = [[0, "live"], [60, "60 ms a pass"], [120, "120 ms a pass"], [250, "250 ms a pass"],
  [500, "500 ms a pass"], [1000, "1 s a pass"]];
const CALM_MS = 1000;
const ICONS = {
  first: "M6 5v14M19 5v14l-10-7z", back: "M16 5v14L6 12z", play: "M7 4v16l13-8z",
  pause: "M8 5v14M16 5v14", on: "M8 5v14l10-7z", last: "M18 5v14M5 5v14l10-7z",
};

export const calm = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

/** A clock over passes. `draw` is called at most once per frame of the screen, with the newest index.
 * @param {{ draw: (index: number) => void, gap?: (index: number) => number }} options `gap` gives the
 *   milliseconds between a pass and the next one, for playing in measured time */
export function player({ draw, gap }) {
  const pace = Number(remembered("pace", "120"));
  const state = store(/** @type {State} */ ({ index: -1, count: 0, playing: false, open: false, pace }));
  let [handle, drawn, shownAt] = [0, -2, 0];

  function wake() {
    handle ||= requestAnimationFrame(tick);
  }

  /** @param {number} now */
  function tick(now) {
    handle = 0;
    const { index, count, playing, pace: ms, open } = state.get();
    if (playing && index < count - 1) {
      const wait = gap ? gap(index) : ms;
      if (!gap && ms === 0) show(count - 1, now);
      else if (index < 0 || now - shownAt >= wait) {
        show(index + 1, now - shownAt < 2 * wait ? shownAt + wait : now); // late: no hurry to catch up
      }
      wake();
    } else if (playing && !open) state.set({ playing: false });
    const at = state.get().index;
    if (at !== drawn) draw((drawn = at));
  }

  /** @param {number} index @param {number} now */
  function show(index, now) {
    shownAt = now;
    state.set({ index });
  }

  /** @param {number} index */
  function go(index) {
    const last = state.get().count - 1;
    state.set({ index: Math.max(Math.min(0, last), Math.min(last, index)), playing: false });
    wake();
  }

  const self = {
    state,
    go,
    step: (/** @type {number} */ by) => go(state.get().index + by),
    first: () => go(0),
    last: () => go(state.get().count - 1),
    pause: () => state.set({ playing: false }),
    play() {
      const { index, count, open } = state.get();
      state.set({ playing: count > 0, index: index >= count - 1 && !open ? 0 : index });
      shownAt = performance.now();
      wake();
    },
    toggle: () => (state.get().playing ? self.pause() : self.play()),
    /** A run begins: its passes are played as they come, unless the user wants no motion. */
    begin() {
      state.set({ index: -1, count: 0, open: true, playing: !calm() });
      wake();
    },
    /** @param {number} count passes that are there by now */
    extend(count) {
      state.set({ count });
      if (calm() && performance.now() - shownAt > CALM_MS) show(count - 1, performance.now());
      wake();
    },
    /** The run has ended: no more passes come. */
    end() {
      state.set({ open: false });
      if (calm()) self.last();
      wake();
    },
    /** @param {number} count a run that is there as a whole, shown at its end */
    open(count) {
      state.set({ index: count - 1, count, open: false, playing: false });
      drawn = -2;
      wake();
    },
    /** @param {number} ms */
    setPace(ms) {
      remember("pace", String(ms));
      state.set({ pace: ms });
      wake();
    },
    /** Draws the current pass again, for example when something was chosen. */
    redraw() {
      drawn = -2;
      wake();
    },
    /** @param {KeyboardEvent} event @returns {boolean} whether it was a key of the player */
    key(event) {
      const act = {
        " ": self.toggle, ArrowLeft: () => self.step(-1), ArrowRight: () => self.step(1),
        Home: self.first, End: self.last,
      }[event.key];
      if (!act || state.get().count === 0) return false;
      act();
      return true;
    },
  };
  return self;
}

export const KEYS = [
  ["Space", "play or pause"], ["← →", "one pass back or on"], ["Home End", "first or last pass"],
];

/** The buttons and the slider of a player.
 * @param {ReturnType<typeof player>} play
 * @param {(index: number) => string} name what a pass is called: "pass 3 of at most 48" */
export function controls(play, name) {
  /** @param {string} label @param {string} path @param {() => void} onclick */
  const button = (label, path, onclick) =>
    h("button", { type: "button", class: "bare", "aria-label": label, title: label, onclick }, icon(path));
  const toggle = button("Play", ICONS.play, play.toggle);
  const picture = /** @type {Element} */ (toggle.querySelector("path"));
  const slider = h("input", {
    type: "range", min: 0, step: 1, "aria-label": "Pass",
    oninput: () => play.go(Number(slider.value)),
  });
  const label = h("output", { class: "pass" });
  const pace = h("select", { "aria-label": "Speed", onchange: () => play.setPace(Number(pace.value)) },
    PACES.map(([ms, words]) => h("option", { value: ms }, words)));
  const buttons = [
    button("First pass", ICONS.first, play.first),
    button("One pass back", ICONS.back, () => play.step(-1)),
    toggle,
    button("One pass on", ICONS.on, () => play.step(1)),
    button("Last pass", ICONS.last, play.last),
  ];
  const element = h("div", { class: "player", role: "group", "aria-label": "Playback" },
    h("div", { class: "buttons" }, buttons), slider, label, pace);
  play.state.watch((one) => one, ({ index, count, playing, pace: ms }) => {
    for (const one of [...buttons, slider]) one.disabled = count === 0;
    set(slider, "max", Math.max(0, count - 1));
    slider.value = String(Math.max(0, index));
    set(slider, "aria-valuetext", index < 0 ? "no pass yet" : name(index));
    text(label, index < 0 ? "" : name(index));
    set(picture, "d", playing ? ICONS.pause : ICONS.play);
    for (const key of ["aria-label", "title"]) set(toggle, key, playing ? "Pause" : "Play");
    pace.value = String(ms);
  });
  return element;
}

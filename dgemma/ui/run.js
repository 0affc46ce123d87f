// @ts-check
// One request from its start to its end, as every screen shows it: waiting, reading, silent, refused,
// cut off; Stop and "Ask again". Knows the states of a request; not what an answer is.

import { ApiError, CutOff, countDown, events, untilHealthy } from "./api.js";
import { h, text } from "./dom.js";
import { store } from "./store.js";

/** @typedef {"idle" | "sent" | "queued" | "reading" | "running" |
 *   "done" | "stopped" | "cut" | "refused"} Stage
 * @typedef {{ stage: Stage, note: string, error: ApiError | null, again: boolean }} State */

export const BUSY = new Set(["sent", "queued", "reading", "running"]);
const [CLOCK_MS, SILENT_MS] = [1000, 10_000];

/** A place for requests, one at a time.
 * @param {{ after?: () => string }} [options] `after` says how far the answer came: "after pass 38" */
export function makeRun({ after = () => "" } = {}) {
  const state = store(/** @type {State} */ ({ stage: "idle", note: "", error: null, again: false }));
  /** @type {AbortController | null} */
  let controller = null;
  let [beganAt, heardAt] = [0, 0];
  const view = makeView(state, () => controller?.abort(new Error("stopped")), () => [beganAt, heardAt]);

  /** Sends a request and hands over its events until its end.
   * @param {string} path
   * @param {unknown} body
   * @param {(event: any) => void} take
   * @returns {Promise<Stage>} */
  async function start(path, body, take) {
    controller?.abort(new Error("another request"));
    const mine = (controller = new AbortController());
    beganAt = heardAt = performance.now();
    const alive = () => (heardAt = performance.now());
    /** @param {Stage} stage @param {Partial<State>} [more] */
    const go = (stage, more) => {
      if (controller === mine) state.set({ stage, note: "", error: null, again: false, ...more });
      return stage;
    };
    go("sent");
    try {
      for await (const event of events(path, body, { signal: mine.signal, alive })) {
        if (mine.signal.aborted) break;
        const said = event.diffusion;
        if (said?.type === "status" && said.state === "queued") go("queued");
        else if (said?.type === "status") go("reading", { note: reading(said) });
        else if (said || event.choices?.[0]?.delta?.content) go("running");
        take(event);
      }
      return go(mine.signal.aborted ? "stopped" : "done");
    } catch (error) {
      if (mine.signal.aborted) return go("stopped");
      return failed(error, go, mine.signal);
    }
  }

  /** @param {unknown} error
   * @param {(stage: Stage, more?: Partial<State>) => Stage} go
   * @param {AbortSignal} signal */
  function failed(error, go, signal) {
    if (error instanceof ApiError && error.code !== "cancelled") {
      const wait = error.status === 429 ? error.retryAfterS ?? 1 : 0;
      const again = error.status !== 400;
      countDown(wait, (left) => {
        const note = left ? `${error.message} Again in ${left} s.` : error.message;
        go("refused", { note, error, again: again && !left });
      }, signal).catch(() => {});
      return /** @type {Stage} */ ("refused");
    }
    if (!(error instanceof CutOff || error instanceof ApiError)) throw error;
    const why = error instanceof ApiError ? "the server is stopping" : error.message;
    const note = [`Cut off ${after()}`.trim(), why].join(": ");
    const back = () => go("cut", { note: `${note}. It answers again.`, again: true });
    untilHealthy(signal).then(back, () => {});
    return go("cut", { note: `${note}.`, again: true });
  }

  return {
    state,
    start,
    view,
    stop: () => controller?.abort(new Error("stopped")),
    busy: () => BUSY.has(state.get().stage),
  };
}

/** @param {any} said */
function reading(said) {
  if (!said.prompt_tokens) return "";
  const number = (/** @type {number} */ n) => n.toLocaleString("en");
  return `${number(said.encoded ?? 0)} of ${number(said.prompt_tokens)} tokens`;
}

/** The line under a form: what happens, for how long, and what can be done. `note` is for the screen.
 * @param {import("./store.js").Store<State>} state
 * @param {() => void} stop
 * @param {() => [number, number]} times when the request began, when something was last heard */
function makeView(state, stop, times) {
  const words = h("span", { class: "run-words" });
  const clock = h("span", { class: "run-clock" });
  const silent = h("span", { class: "run-silent", hidden: true }, "the server is silent");
  const stopButton = h("button", { type: "button", class: "quiet", onclick: stop }, "Stop");
  const again = h("button", { type: "button", class: "quiet" }, "Ask again");
  const element = h("div", { class: "run" }, words, silent, clock, stopButton, again);
  let timer = 0;
  const tick = () => {
    const [began, heard] = times();
    const now = performance.now();
    text(clock, now - began >= CLOCK_MS ? `${Math.floor((now - began) / 1000)} s` : "");
    silent.hidden = now - heard < SILENT_MS;
  };
  const WORDS = {
    idle: "", sent: "sent", queued: "queued", reading: "reading the prompt", running: "writing",
    done: "", stopped: "stopped", cut: "", refused: "",
  };
  state.watch((one) => one, ({ stage, note, again: offered }) => {
    const busy = BUSY.has(stage);
    element.dataset.stage = stage;
    text(words, [WORDS[stage], note].filter(Boolean).join(", "));
    stopButton.hidden = !busy;
    again.hidden = !offered;
    if (busy && !timer) timer = setInterval(tick, 250);
    if (!busy) {
      clearInterval(timer);
      timer = 0;
      silent.hidden = true;
      text(clock, "");
    }
  });
  return { element, again };
}

// @ts-check
// The Lab: a run pass by pass, its positions, forks of it, and its trace as a file.
// Knows the chat API's `diffusion.stream: "ids"`; drawing is done by track.js and inspector.js.

import { download, h, list, put, text } from "../dom.js";
import { legend } from "../grid.js";
import { inspector } from "../inspector.js";
import { KEYS, controls, player } from "../player.js";
import { makeRun } from "../run.js";
import { say } from "../say.js";
import { server } from "../server.js";
import { settings } from "../settings.js";
import { counts, shorten } from "../tokens.js";
import * as traces from "../trace.js";
import { firstDifference, track } from "../track.js";

/** @typedef {import("../trace.js").Trace} Trace */
/** @typedef {{ canvas: number, step: number, position: number, do: "pin" | "ban" | "renoise", id?: number }} Edit */

const PATH = "/v1/chat/completions";
const EXAMPLES = ["What is your name?", "What is 12+34?", "Who made you?"];
const ALTERNATIVES = 8;

export const keys = [...KEYS, ["Enter", "open the chosen cell"], ["↑ ↓ ← →", "in the grid: move"], ["Esc", "close the inspector"]];

/** The screen; see `SCREENS` in app.js. */
export function make() {
  const form = settings();
  const prompt = h("textarea", { id: "lab-prompt", rows: 2, dir: "auto", placeholder: "Ask something", onkeydown: send });
  const submit = h("button", { type: "submit", class: "primary" }, "Run");
  const run = makeRun({ after: () => `after pass ${shownTrace().frames.at(-1)?.step ?? 0}` });
  const play = player({ draw });
  let [chosen, most] = [-1, 0];
  /** @type {Edit[]} */
  let edits = [];
  /** @type {Trace | null} */
  let growing = null; // the trace that the running request fills

  const base = track({ title: "Run", choose, go: play.go });
  const fork = track({ title: "Fork", choose, go: play.go });
  const canFork = () => server.get().fields.has("edits");
  const inspect = inspector({ close: () => choose(-1), act, canAct: canFork, go: play.go });
  const differs = h("button", { type: "button", class: "quiet", hidden: true });
  const files = h("input", { type: "file", accept: ".json", hidden: true, onchange: () => load(files.files?.[0]) });
  const notice = h("p", { class: "notice", role: "alert" });
  const tool = (/** @type {string} */ label, /** @type {() => void} */ onclick) =>
    h("button", { type: "button", class: "quiet", onclick }, label);
  const saving = [tool("Save trace", save), tool("Copy text", copy)];
  const examples = h("ul", { class: "examples" });
  const empty = h("div", { class: "empty" },
    h("p", null, "The model writes a whole block at once: every pass replaces the tokens that it is unsure of. Run a prompt and step through the passes, or load a trace."),
    examples);
  const stage = h("div", { class: "stage", hidden: true },
    controls(play, name), legend(),
    h("div", { class: "columns" }, h("div", { class: "tracks" }, base.element, fork.element), inspect.element));
  const element = h("div", { class: "lab", ondragover: over, ondrop: drop },
    h("header", { class: "title" }, h("h1", null, "Lab"),
      h("div", { class: "buttons" }, tool("Load trace", () => files.click()), saving, files)),
    h("form", { class: "ask card", onsubmit: submitted },
      h("label", { for: "lab-prompt" }, "Prompt"), prompt, form.element,
      h("div", { class: "buttons" }, submit, run.view.element, differs)),
    notice, empty, stage);
  fork.element.hidden = true;

  run.view.again.addEventListener("click", () => (growing === fork.trace && growing ? startFork() : start()));
  run.state.watch((one) => one.error, form.blame);
  run.state.watch((one) => one.stage, () => (submit.disabled = run.busy()));
  server.watch((one) => one.examples, (given) =>
    list(examples, given.length ? given.slice(0, 3) : EXAMPLES, (one) => one, (one) =>
      h("li", null, h("button", { type: "button", onclick: () => ((prompt.value = one), start()) }, shorten(one, 60)))));
  refresh();

  /** The trace that the user sees most of. */
  function shownTrace() {
    return /** @type {Trace} */ ((growing ?? base.trace) ?? { frames: [] });
  }

  /** @param {number} index */
  function name(index) {
    const trace = longest();
    const frame = trace?.frames[index];
    if (!trace || !frame) return "";
    const last = trace.frames.filter((one) => one.canvas === frame.canvas && one.attempt === frame.attempt).at(-1);
    const of = play.state.get().open && frame.canvas === trace.frames.at(-1)?.canvas ? `at most ${most}` : last?.step;
    const many = trace.frames.at(-1)?.canvas || trace.frames.at(-1)?.attempt;
    const where = many ? `canvas ${frame.canvas + 1}${frame.attempt ? `, try ${frame.attempt + 1}` : ""}, ` : "";
    return `${where}pass ${frame.step} of ${of}`;
  }

  function longest() {
    const [one, other] = [base.trace, fork.trace];
    return one && other && other.frames.length > one.frames.length ? other : one;
  }

  /** @param {number} index */
  function draw(index) {
    const at = (/** @type {Trace | null} */ trace) => Math.min(index, (trace?.frames.length ?? 0) - 1);
    base.draw(at(base.trace));
    if (fork.trace) fork.draw(at(fork.trace), base.trace);
    const trace = fork.trace ?? base.trace;
    if (trace) inspect.show(trace, at(trace), chosen, server.get().controls);
  }

  /** @param {number} position */
  function choose(position) {
    chosen = position;
    for (const one of [base, fork]) one.mark(position);
    if (position < 0) inspect.element.hidden = true;
    play.redraw();
  }

  function refresh() {
    const some = Boolean(base.trace);
    empty.hidden = some;
    stage.hidden = !some;
    for (const one of saving) one.hidden = !some;
    fork.element.hidden = !fork.trace;
    const first = base.trace && fork.trace?.frames.length ? firstDifference(base.trace, fork.trace) : -1;
    differs.hidden = first < 0 || run.busy();
    text(differs, `Differs from pass ${fork.trace?.frames[first]?.step ?? ""} on`);
    differs.dataset.pass = String(first);
  }
  differs.addEventListener("click", () => play.go(Number(differs.dataset.pass)));

  /** @param {Event} event */
  function submitted(event) {
    event.preventDefault();
    start();
  }

  /** @param {KeyboardEvent} event */
  function send(event) {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      start();
    }
  }

  async function start() {
    if (run.busy() || !prompt.value.trim()) return prompt.focus();
    const { name, width, fields } = server.get();
    const asked = form.body();
    const more = fields.has("stream_alternatives") ? { stream_alternatives: ALTERNATIVES } : {};
    edits = [];
    fork.use(null);
    await follow(base, traces.begin({ name, canvas_length: width }, {
      model: name, messages: [{ role: "user", content: prompt.value }], ...asked, stream: true,
      stream_options: { include_usage: true }, diffusion: { ...asked.diffusion, stream: "ids", ...more },
    }));
  }

  /** Runs the same request with edits, in the second track. */
  async function startFork() {
    const from = /** @type {Trace} */ (base.trace);
    const request = { ...from.request, seed: from.seed, diffusion: { ...from.request.diffusion, edits } };
    list(fork.chips, edits, (one) => JSON.stringify(one), (one) =>
      h("button", { type: "button", class: "chip", onclick: () => drop1(one) }, words(one), h("span", { "aria-hidden": true }, " ×")));
    await follow(fork, traces.begin(from.model, request));
  }

  /**
   * Sends the request of a trace and shows what comes.
   * @param {ReturnType<typeof track>} where
   * @param {Trace} trace
   */
  async function follow(where, trace) {
    growing = trace;
    text(notice, "");
    where.use(trace);
    if (where === base) choose(-1);
    play.begin();
    refresh();
    say(where === base ? "Run begun." : "Fork begun.");
    const stage = await run.start(PATH, trace.request, (event) => {
      if (traces.record(trace, event) !== "frame") return;
      most = event.diffusion.max_steps ?? most;
      play.extend(trace.frames.length);
      const { step, state } = /** @type {import("../trace.js").Frame} */ (trace.frames.at(-1));
      say(`Pass ${step} of at most ${most}, ${counts(state)[1]} of ${state.length} accepted.`);
    });
    if (growing !== trace) return; // another run has taken its place
    play.end();
    play.redraw();
    refresh();
    const passes = `${trace.frames.length} passes`;
    say(stage === "done" ? `Done after ${passes}: ${shorten(trace.text, 200)}` : `Ended after ${passes}.`, { must: true });
  }

  /** @param {import("../inspector.js").Act} what */
  function act(what) {
    const trace = fork.trace ?? base.trace;
    if (!trace || run.busy()) return;
    const { index } = play.state.get();
    const frame = trace.frames[Math.min(index, trace.frames.length - 1)];
    // Before the next pass; what was committed after its last pass is decided in that one.
    const next = trace.frames.some((one) => one.canvas === frame.canvas && one.step > frame.step);
    const edit = { canvas: frame.canvas, step: frame.step + Number(next), position: chosen, ...what };
    edits = [...edits.filter((one) => one.step !== edit.step || one.position !== chosen || one.do !== edit.do), edit];
    startFork();
  }

  /** @param {Edit} edit */
  function drop1(edit) {
    edits = edits.filter((one) => one !== edit);
    if (edits.length) startFork();
    else {
      fork.use(null);
      put(fork.chips);
      refresh();
    }
  }

  /** @param {Edit} edit */
  function words(edit) {
    const piece = edit.id === undefined ? "" : ` ${JSON.stringify(base.trace?.pieces.get(edit.id) ?? edit.id)}`;
    return `${edit.do}${piece} at ${edit.position}, pass ${edit.step}`;
  }

  function save() {
    const trace = fork.trace ?? base.trace;
    if (trace) download(`${trace.model.name || "run"}-${trace.seed ?? "seed"}.dgemma.json`, traces.write(trace), "application/json");
  }

  async function copy() {
    await navigator.clipboard.writeText((fork.trace ?? base.trace)?.text ?? "");
    say("Copied.");
  }

  /** @param {File | undefined} file */
  async function load(file) {
    if (!file) return;
    files.value = "";
    try {
      if (file.size > traces.MOST_BYTES) throw new traces.TraceError("the file is larger than 32 MiB");
      const trace = traces.read(await file.text());
      run.stop();
      growing = null;
      edits = [];
      fork.use(null);
      base.use(trace);
      choose(-1);
      play.open(trace.frames.length);
      prompt.value = String(trace.request.messages?.at?.(-1)?.content ?? "");
      text(notice, "");
      say(`Loaded ${trace.frames.length} passes.`, { must: true });
    } catch (error) {
      if (!(error instanceof traces.TraceError)) throw error;
      text(notice, `${shorten(file.name, 60)} was not loaded: ${error.message}.`);
    }
    refresh();
  }

  /** @param {DragEvent} event */
  function over(event) {
    if (event.dataTransfer?.types.includes("Files")) event.preventDefault();
  }

  /** @param {DragEvent} event */
  function drop(event) {
    if (!event.dataTransfer?.files.length) return;
    event.preventDefault();
    load(event.dataTransfer.files[0]);
  }

  return {
    element,
    show: () => base.trace || prompt.focus(),
    /** @param {KeyboardEvent} event */
    key(event) {
      if (event.key !== "Escape" || chosen < 0) return play.key(event);
      choose(-1);
      return true;
    },
  };
}

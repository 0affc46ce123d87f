// @ts-check
// The Lab: a run pass by pass, its positions, forks of it, and its trace as a file.
// Knows the chat API's `diffusion.stream: "ids"`; drawing is done by track.js and inspector.js.

import { download, h, list, put, text } from "../dom.js";
import * as forks from "../forks.js";
import { legend } from "../grid.js";
import { inspector } from "../inspector.js";
import { KEYS, controls, player } from "../player.js";
import { makeRun } from "../run.js";
import { say } from "../say.js";
import { NANO, server } from "../server.js";
import { settings } from "../settings.js";
import { counts, shorten } from "../tokens.js";
import * as traces from "../trace.js";
import { track } from "../track.js";

/** @typedef {import("../trace.js").Trace} Trace */

const PATH = "/v1/chat/completions";
const ALTERNATIVES = 8;
const EXAMPLES = ["What is your name?", "What is 12+34?", "Who made you?"];
const ABOUT = "The model writes a whole block at once: each pass replaces the tokens that it is unsure of. "
  + "Run a prompt and step through the passes, choose a position to see its history, or load a trace.";

export const keys = [
  ...KEYS, ["↑ ↓ ← →", "in the grid: another position"], ["Enter", "in the grid: inspect it"],
  ["Esc", "close the inspector"],
];

/** @param {string} label @param {() => void} onclick */
function tool(label, onclick) {
  return h("button", { type: "button", class: "quiet", onclick }, label);
}

class Lab {
  form = settings();
  run = makeRun({ after: () => this.progress() });
  player = player({ draw: (index) => this.draw(index) });
  base = this.track("Run");
  fork = this.track("Fork");
  inspector = inspector({
    close: () => this.choose(-1), go: this.player.go,
    act: (act) => this.act(act), canAct: () => server.get().fields.has("edits"),
  });
  /** @type {readonly forks.Edit[]} */
  edits = [];
  /** @type {Trace | null} the one that the last request fills */
  growing = null;
  chosen = -1;
  most = 0; // passes of a canvas

  prompt = h("textarea", {
    id: "lab-prompt", rows: 1, dir: "auto", placeholder: "Ask something",
    onkeydown: (/** @type {KeyboardEvent} */ event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.start();
    },
  });
  submit = h("button", { type: "submit", class: "primary" }, "Run");
  files = h("input", {
    type: "file", accept: ".json", hidden: true, "aria-label": "Trace file",
    onchange: () => this.load(this.files.files?.[0]),
  });
  saving = [tool("Save trace", () => this.save()), tool("Copy text", () => this.copy())];
  differs = tool("", () => this.player.go(Number(this.differs.value)));
  notice = h("p", { class: "notice", role: "alert" });
  examples = h("ul", { class: "examples" });
  limits = h("p");
  empty = h("div", { class: "empty" }, h("p", null, ABOUT), this.limits, this.examples);
  stage = h("div", { class: "stage" },
    controls(this.player, (index) => this.name(index)), legend(),
    h("div", { class: "columns" },
      h("div", { class: "tracks" }, this.base.element, this.fork.element), this.inspector.element));
  element = h("div", { class: "lab", ondrop: this.drop.bind(this) },
    h("header", { class: "title" }, h("h1", null, "Lab"),
      h("div", { class: "buttons" }, tool("Load trace", () => this.files.click()), this.saving, this.files)),
    h("form", { class: "ask card", onsubmit: this.submitted.bind(this) },
      h("label", { for: "lab-prompt" }, "Prompt"), this.prompt, this.form.element,
      h("div", { class: "buttons" }, this.submit, this.run.view.element, this.differs)),
    this.notice, this.empty, this.stage);

  constructor() {
    this.run.view.again.addEventListener("click", () => this.again());
    this.run.state.watch((one) => one.error, this.form.blame);
    this.run.state.watch((one) => one.stage, () => (this.submit.disabled = this.run.busy()));
    server.watch((one) => one.examples, (given) => this.offer(given.length ? given.slice(0, 3) : EXAMPLES));
    server.watch((one) => one.name, (name) => put(this.limits, name === "nano" && NANO));
    this.refresh();
  }

  /** @param {string} title */
  track(title) {
    return track({ title, choose: (position) => this.choose(position), go: (pass) => this.player.go(pass) });
  }

  /** @param {string[]} prompts */
  offer(prompts) {
    const run = (/** @type {string} */ prompt) => {
      this.prompt.value = prompt;
      this.start();
    };
    list(this.examples, prompts, (one) => one, (one) =>
      h("li", null, h("button", { type: "button", onclick: () => run(one) }, shorten(one, 60))));
  }

  // -- what is shown -----------------------------------------------------------------------------

  /** The track that the user works with: the fork, if there is one. */
  get front() {
    return this.fork.trace ? this.fork : this.base;
  }

  /** How far an answer came that was cut off. */
  progress() {
    const frame = this.growing?.frames.at(-1);
    return frame ? `after pass ${frame.step + 1}` : "before the first pass";
  }

  /** What a pass is called. The last pass of a canvas that is still denoised is not known.
   * @param {number} index */
  name(index) {
    const trace = this.fork.trace?.frames[index] ? this.fork.trace : this.base.trace;
    const frame = trace?.frames[index];
    if (!trace || !frame) return "";
    const mates = trace.frames.filter((one) => one.canvas === frame.canvas && one.attempt === frame.attempt);
    const newest = trace.frames.at(-1);
    const open = this.player.state.get().open && mates.at(-1) === newest;
    const where = newest?.canvas ? `canvas ${frame.canvas + 1}, ` : "";
    const which = newest?.attempt || frame.attempt ? `try ${frame.attempt + 1}, ` : "";
    return `${where}${which}pass ${frame.step + 1} of ${open ? `at most ${this.most}` : mates.length}`;
  }

  /** @param {number} index */
  draw(index) {
    this.base.draw(index);
    this.fork.draw(index, this.base.trace);
    const { trace } = this.front;
    if (trace) this.inspector.show(trace, index, this.chosen, server.get().controls);
  }

  /** @param {number} position -1: none */
  choose(position) {
    this.chosen = position;
    for (const one of [this.base, this.fork]) one.mark(position);
    this.inspector.element.hidden = position < 0;
    this.player.redraw();
  }

  /** Shows what there is: nothing yet, a run, a fork beside it. */
  refresh() {
    const [base, fork] = [this.base.trace, this.fork.trace];
    this.empty.hidden = Boolean(base);
    for (const one of [this.stage, ...this.saving]) one.hidden = !base;
    this.fork.element.hidden = !fork;
    const first = base && fork?.frames.length && !this.run.busy() ? forks.firstDifference(base, fork) : -1;
    this.differs.hidden = first < 0;
    this.differs.value = String(first);
    const frame = fork?.frames[first] ?? base?.frames[first];
    text(this.differs, frame ? `Differs from pass ${frame.step + 1} on` : "");
  }

  // -- runs --------------------------------------------------------------------------------------

  /** @param {Event} event */
  submitted(event) {
    event.preventDefault();
    this.start();
  }

  async start() {
    if (this.run.busy() || !this.prompt.value.trim()) return this.prompt.focus();
    const { name, width, fields } = server.get();
    const { diffusion, ...asked } = this.form.body();
    const more = fields.has("stream_alternatives") ? { stream_alternatives: ALTERNATIVES } : {};
    this.unfork();
    await this.follow(this.base, traces.begin({ name, canvas_length: width }, {
      model: name || undefined, messages: [{ role: "user", content: this.prompt.value }], ...asked,
      stream: true, stream_options: { include_usage: true },
      diffusion: { ...diffusion, stream: "ids", ...more },
    }));
  }

  /** Runs the same request with the edits, in the second track. */
  async startFork() {
    const trace = /** @type {Trace} */ (this.base.trace);
    put(this.fork.chips, this.edits.map((one) => {
      const words = forks.words(trace, one);
      const props = { type: "button", class: "chip", "aria-label": `Remove: ${words}` };
      return h("button", { ...props, onclick: () => this.without(one) }, `${words} ×`);
    }));
    await this.follow(this.fork, traces.begin(trace.model, forks.forkRequest(trace, this.edits)));
  }

  again() {
    return this.growing && this.growing === this.fork.trace ? this.startFork() : this.start();
  }

  /** Sends the request of a trace and shows what comes.
   * @param {ReturnType<typeof track>} where
   * @param {Trace} trace */
  async follow(where, trace) {
    this.growing = trace;
    text(this.notice, "");
    where.use(trace);
    if (where === this.base) this.choose(-1);
    this.player.begin();
    this.refresh();
    say(where === this.base ? "Run begun." : "Fork begun.");
    const stage = await this.run.start(PATH, trace.request, (event) => {
      if (traces.record(trace, event) === "frame") this.grown(trace, event.diffusion.max_steps);
    });
    if (this.growing !== trace) return; // another run has taken its place
    this.player.end();
    this.player.redraw();
    this.refresh();
    const told = `${stage === "done" ? "Done" : "Ended"} after ${trace.frames.length} passes`;
    say(stage === "done" ? `${told}: ${shorten(trace.text, 200)}` : `${told}.`, { must: true });
  }

  /** @param {Trace} trace @param {number} most */
  grown(trace, most) {
    this.most = most;
    this.player.extend(trace.frames.length);
    const { step, state } = trace.frames[trace.frames.length - 1];
    say(`Pass ${step + 1} of at most ${most}, ${counts(state)[1]} of ${state.length} accepted.`);
  }

  /** @param {forks.Act} act */
  act(act) {
    const { trace } = this.front;
    if (!trace || this.run.busy()) return;
    const index = Math.min(this.player.state.get().index, trace.frames.length - 1);
    this.edits = forks.withEdit(this.edits, forks.editAt(trace, index, this.chosen, act));
    this.startFork();
  }

  /** @param {forks.Edit} edit */
  without(edit) {
    if (this.run.busy()) return;
    this.edits = this.edits.filter((one) => one !== edit);
    if (this.edits.length) this.startFork();
    else this.unfork();
  }

  unfork() {
    this.edits = [];
    this.fork.use(null);
    put(this.fork.chips);
    this.refresh();
    this.player.redraw();
  }

  // -- files -------------------------------------------------------------------------------------

  save() {
    const { trace } = this.front;
    if (!trace) return;
    const name = `${trace.model.name || "run"}-${trace.seed ?? "seed"}`.replace(/[^\w.-]+/g, "-");
    download(`${name}.dgemma.json`, traces.write(trace), "application/json");
  }

  async copy() {
    await navigator.clipboard.writeText(this.front.trace?.text ?? "");
    say("Copied.");
  }

  /** @param {File | undefined} file */
  async load(file) {
    if (!file) return;
    try {
      if (file.size > traces.MOST_BYTES) throw new traces.TraceError("the file is larger than 32 MiB");
      this.open(traces.read(await file.text()));
      text(this.notice, "");
    } catch (error) {
      if (!(error instanceof traces.TraceError)) throw error;
      text(this.notice, `${shorten(file.name, 60)} was not loaded: ${error.message}.`);
    }
    this.files.value = "";
  }

  /** @param {Trace} trace */
  open(trace) {
    this.run.stop();
    this.growing = null;
    this.unfork();
    this.base.use(trace);
    this.choose(-1);
    this.player.open(trace.frames.length);
    const asked = trace.request.messages?.at?.(-1)?.content;
    if (typeof asked === "string") this.prompt.value = asked;
    this.refresh();
    say(`Loaded ${trace.frames.length} passes.`, { must: true });
  }

  /** @param {DragEvent} event */
  drop(event) {
    if (!event.dataTransfer?.files.length) return;
    event.preventDefault();
    this.load(event.dataTransfer.files[0]);
  }

  // -- the page ----------------------------------------------------------------------------------

  show() {
    if (!this.base.trace) this.prompt.focus();
  }

  /** @param {KeyboardEvent} event */
  key(event) {
    if (event.key !== "Escape" || this.chosen < 0) return this.player.key(event);
    this.choose(-1);
    return true;
  }
}

/** The screen; see `SCREENS` in app.js. */
export function make() {
  return new Lab();
}

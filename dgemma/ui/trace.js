// @ts-check
// A run as it was streamed, and as a file: records, writes, and reads files that nobody vouches for.
// Knows the stream's events and the format `dgemma-trace`; no elements.

/** @typedef {import("./tokens.js").Pieces} Pieces */
/** @typedef {{ canvas: number, attempt: number, step: number, t_ms: number | null,
 *   temperature: number | null, ids: Int32Array, state: Uint8Array, entropy: Uint8Array,
 *   alternatives: [number, number][][] | null }} Frame
 * @typedef {{ canvas: number, t_ms: number | null, tokens: number, steps: number,
 *   stop_reason: string | null }} Commit
 * @typedef {{ made_by: string, model: { name: string, canvas_length: number }, mode: string,
 *   request: any, seed: number | null, pieces: Pieces, frames: Frame[], commits: Commit[],
 *   text: string, end: any }} Trace */

export const MOST_BYTES = 32 * 2 ** 20;
const [MOST_FRAMES, MOST_POSITIONS, MOST_PIECES] = [4096, 4096, 300_000];
const [LARGEST_ID, LARGEST, DEEPEST] = [2 ** 31 - 1, Number.MAX_SAFE_INTEGER, 64];
const END = ["usage", "diffusion_usage", "timings", "finish_reason"];
const MODES = ["diffusion", "autoregressive", "exact"];

/** Why a file is not taken, in one sentence. */
export class TraceError extends Error {}

/** The trace of a run that begins.
 * @param {{ name: string, canvas_length: number }} model
 * @param {any} request the body as it is sent
 * @returns {Trace} */
export function begin(model, request) {
  const mode = request.mode ?? "diffusion";
  return {
    made_by: "dgemma page", model, mode, request: structuredClone(request), seed: request.seed ?? null,
    pieces: new Map(), frames: [], commits: [], text: "", end: null,
  };
}

/** Adds what an event of the stream says. Gives the kind of news.
 * @param {Trace} trace
 * @param {any} event
 * @returns {"frame" | "commit" | "status" | "end" | "text" | null} */
export function record(trace, event) {
  const said = event.diffusion;
  const choice = event.choices?.[0];
  trace.text += choice?.delta?.content ?? choice?.text ?? "";
  if (event.seeds?.length) trace.seed = event.seeds[0];
  for (const [id, piece] of Object.entries(said?.pieces ?? {})) addPiece(trace, Number(id), piece);
  for (const name of ["usage", "diffusion_usage", "timings"]) {
    if (event[name]) trace.end = { ...trace.end, [name]: event[name] };
  }
  if (choice?.finish_reason) {
    trace.end = { ...trace.end, finish_reason: choice.finish_reason };
    return "end";
  }
  if (said?.type === "frame" && said.ids) {
    trace.frames.push(frameOf(said, "the stream"));
    return "frame";
  }
  if (said?.type === "commit") {
    // With a stable prefix a canvas has several: the last tells its steps and why it ended.
    if (said.whole !== false) trace.commits.push(commitOf(said, "the stream"));
    return "commit";
  }
  if (said?.type === "status") return "status";
  return choice?.delta?.content ? "text" : null;
}

/** @param {Trace} trace
 * @param {number} id
 * @param {any} piece */
function addPiece(trace, id, piece) {
  const bytes = Array.isArray(piece) ? piece : piece?.bytes;
  trace.pieces.set(id, bytes ? Uint8Array.from(bytes) : String(piece));
}

/** How a run ended, in a few words each: why, passes, tokens, time, seed.
 * @param {Trace} trace
 * @returns {string[]} none while it is running */
export function outcome({ end, commits, frames, seed }) {
  if (!end) return [];
  const { finish_reason: finish, diffusion_usage: spent, timings } = end;
  const reason = commits.at(-1)?.stop_reason;
  const why = finish === "length" ? "cut at max_tokens" : reason === "step_cap" ? "step cap reached" : reason;
  const passes = spent?.steps ?? frames.length;
  const tokens = commits.reduce((sum, one) => sum + one.tokens, 0);
  const told = [why ?? finish ?? "ended", `${passes} passes`, `${tokens} tokens`];
  if (passes) told.push(`${(tokens / passes).toFixed(1)} tokens a pass`);
  if (typeof timings?.total_ms === "number") told.push(`${(timings.total_ms / 1000).toFixed(2)} s`);
  if (seed !== null) told.push(`seed ${seed}`);
  return told;
}

/** A trace as the text of a file; `write(read(text))` gives the same text.
 * @param {Trace} trace */
export function write(trace) {
  /** @param {string | Uint8Array} one */
  const saved = (one) => (typeof one === "string" ? one : { bytes: [...one] });
  const pieces = Array.from(trace.pieces, ([id, one]) => [id, saved(one)]);
  const frames = trace.frames.map((one) => ({
    canvas: one.canvas,
    ...(one.attempt ? { try: one.attempt } : {}),
    step: one.step,
    t_ms: one.t_ms,
    temperature: one.temperature,
    ids: [...one.ids],
    state: one.state.join(""),
    entropy: [...one.entropy],
    ...(one.alternatives ? { alternatives: one.alternatives } : {}),
  }));
  const { made_by, model, mode, request, seed, commits, text, end } = trace;
  const head = { format: "dgemma-trace", version: 1, made_by, model, mode, request, seed };
  const costs = END.filter((name) => end && name in end).map((name) => [name, end[name]]);
  return JSON.stringify({ ...head, pieces, frames, commits, text, end: end && Object.fromEntries(costs) });
}

/** Reads the text of a file.
 * @param {string} content
 * @returns {Trace}
 * @throws {TraceError} */
export function read(content) {
  if (content.length > MOST_BYTES) throw new TraceError("the file is larger than 32 MiB");
  let found;
  try {
    found = JSON.parse(content);
  } catch {
    throw new TraceError("the file is not JSON");
  }
  if (found?.format !== "dgemma-trace") throw new TraceError("the file is not a dgemma trace");
  if (found.version !== 1) throw new TraceError("the trace has another version; this page reads version 1");
  const model = object(found.model, "model");
  const frames = array(found.frames, "frames", MOST_FRAMES);
  if (!MODES.includes(found.mode)) throw new TraceError(`mode is none of ${MODES.join(", ")}`);
  return {
    made_by: string(found.made_by, "made_by", 200),
    model: {
      name: string(model.name, "model.name", 500),
      canvas_length: whole(model.canvas_length, "model.canvas_length", MOST_POSITIONS),
    },
    mode: found.mode,
    request: shallow(object(found.request, "request"), "request"),
    seed: found.seed === null ? null : whole(found.seed, "seed", LARGEST),
    pieces: piecesOf(found.pieces),
    frames: frames.map((one, i) => frameOf(one, `frames[${i}]`)),
    commits: array(found.commits, "commits", MOST_FRAMES).map((one, i) => commitOf(one, `commits[${i}]`)),
    text: string(found.text, "text", MOST_BYTES),
    end: found.end === null ? null : shallow(object(found.end, "end"), "end"),
  };
}

/** @param {any} found
 * @returns {Pieces} */
function piecesOf(found) {
  /** @type {Pieces} */
  const pieces = new Map();
  for (const [i, one] of array(found, "pieces", MOST_PIECES).entries()) {
    const at = `pieces[${i}]`;
    const [id, piece] = array(one, at, 2);
    const number = whole(id, at, LARGEST_ID);
    if (pieces.has(number)) throw new TraceError(`${at} repeats an id`);
    pieces.set(number, isObject(piece) ? bytes(piece.bytes, `${at}.bytes`, 1000) : string(piece, at, 10_000));
  }
  return pieces;
}

/** @param {any} found an event of the stream or a frame of a file
 * @param {string} at
 * @returns {Frame} */
function frameOf(found, at) {
  const given = array(object(found, at).ids, `${at}.ids`, MOST_POSITIONS);
  const ids = Int32Array.from(given, (one) => whole(one, `${at}.ids`, LARGEST_ID));
  const states = string(found.state, `${at}.state`, MOST_POSITIONS);
  if (!/^[012]*$/.test(states)) throw new TraceError(`${at}.state has other digits than 0, 1 and 2`);
  const state = Uint8Array.from(states, Number);
  const entropy = bytes(found.entropy, `${at}.entropy`, MOST_POSITIONS);
  if (state.length !== ids.length || entropy.length !== ids.length) {
    throw new TraceError(`${at}: ids, state and entropy have different lengths`);
  }
  const told = found.alternatives ?? null;
  if (told !== null && array(told, `${at}.alternatives`, MOST_POSITIONS).length !== ids.length) {
    throw new TraceError(`${at}: alternatives are not one list for each position`);
  }
  return {
    canvas: whole(found.canvas, `${at}.canvas`, LARGEST),
    attempt: whole(found.try ?? 0, `${at}.try`, LARGEST),
    step: whole(found.step, `${at}.step`, LARGEST),
    t_ms: real(found.t_ms, `${at}.t_ms`),
    temperature: real(found.temperature, `${at}.temperature`),
    ids, state, entropy,
    alternatives: told && told.map((/** @type {any} */ one) => alternativesOf(one, `${at}.alternatives`)),
  };
}

/** @param {any} found
 * @param {string} at
 * @returns {[number, number][]} */
function alternativesOf(found, at) {
  return array(found, at, 64).map((one) => {
    const [id, logprob, ...more] = array(one, at, 2);
    if (typeof logprob !== "number" || !(logprob <= 0.01) || more.length) {
      throw new TraceError(`${at} has something else than pairs of an id and a log-probability`);
    }
    return [whole(id, at, LARGEST_ID), logprob];
  });
}

/** @param {any} found
 * @param {string} at
 * @returns {Commit} */
function commitOf(found, at) {
  object(found, at);
  return {
    canvas: whole(found.canvas, `${at}.canvas`, LARGEST),
    t_ms: real(found.t_ms, `${at}.t_ms`),
    tokens: whole(found.tokens, `${at}.tokens`, LARGEST),
    steps: whole(found.steps, `${at}.steps`, LARGEST),
    stop_reason: found.stop_reason == null ? null : string(found.stop_reason, `${at}.stop_reason`, 100),
  };
}

/** @param {any} value */
function isObject(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** @param {any} value @param {string} at */
function object(value, at) {
  if (!isObject(value)) throw new TraceError(`${at} is not an object`);
  return value;
}

/** @param {any} value @param {string} at @param {number} most @returns {any[]} */
function array(value, at, most) {
  if (!Array.isArray(value)) throw new TraceError(`${at} is not a list`);
  if (value.length > most) throw new TraceError(`${at} has more than ${most} entries`);
  return value;
}

/** @param {any} value @param {string} at @param {number} most @returns {string} */
function string(value, at, most) {
  if (typeof value !== "string") throw new TraceError(`${at} is not a text`);
  if (value.length > most) throw new TraceError(`${at} is longer than ${most} characters`);
  return value;
}

/** @param {any} value @param {string} at @param {number} most @returns {number} */
function whole(value, at, most) {
  if (Number.isInteger(value) && value >= 0 && value <= most) return value;
  throw new TraceError(`${at} is not a whole number from 0 to ${most}`);
}

/** @param {any} value @param {string} at @param {number} most */
function bytes(value, at, most) {
  return Uint8Array.from(array(value, at, most), (one) => whole(one, at, 255));
}

/** @param {any} value @param {string} at @returns {number | null} */
function real(value, at) {
  if (value === null || value === undefined) return null;
  if (typeof value === "number" && value >= 0 && value <= 1e12) return value;
  throw new TraceError(`${at} is not a number from 0 on`);
}

/** A free value that is not nested too deeply to be written again.
 * @template T
 * @param {T} value
 * @param {string} at
 * @returns {T} */
function shallow(value, at) {
  let level = [/** @type {any} */ (value)];
  for (let depth = 0; level.length; depth++) {
    if (depth > DEEPEST) throw new TraceError(`${at} is nested more than ${DEEPEST} deep`);
    level = level.flatMap((one) => (typeof one === "object" && one !== null ? Object.values(one) : []));
  }
  return value;
}

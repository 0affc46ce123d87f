// @ts-check
// Edits of a run, and the request that runs it again with them. The same seed runs the same way up to
// the first edit, so the server keeps nothing. Knows `diffusion.edits`; no elements.

/** @typedef {import("./trace.js").Trace} Trace */
/** @typedef {{ do: "pin" | "ban" | "renoise", id?: number }} Act */
/** @typedef {{ canvas: number, try: number, step: number, position: number } & Act} Edit */

/** The edit that does something at a position before the pass after the one that is shown; before
 * that one itself if it is its canvas' last.
 * @param {Trace} trace
 * @param {number} index
 * @param {number} position
 * @param {Act} act
 * @returns {Edit} */
export function editAt(trace, index, position, act) {
  const { canvas, attempt, step } = trace.frames[index];
  const mates = trace.frames.filter((one) => one.canvas === canvas && one.attempt === attempt);
  const more = mates.some((one) => one.step > step);
  return { canvas, try: attempt, step: step + Number(more), position, ...act };
}

/** A list with one more edit, which replaces one of its kind at the same place.
 * @param {readonly Edit[]} edits
 * @param {Edit} edit */
export function withEdit(edits, edit) {
  const place = (/** @type {Edit} */ one) => [one.canvas, one.try, one.step, one.position, one.do].join();
  return [...edits.filter((one) => place(one) !== place(edit)), edit];
}

/** The request of a run with edits.
 * @param {Trace} trace
 * @param {readonly Edit[]} edits */
export function forkRequest(trace, edits) {
  const { request, seed } = trace;
  return { ...request, seed, stream: true, diffusion: { ...request.diffusion, stream: "ids", edits } };
}

/** An edit in words: `pin " cat" at 12, pass 4`.
 * @param {Trace} trace
 * @param {Edit} edit */
export function words(trace, edit) {
  const piece = edit.id === undefined ? undefined : trace.pieces.get(edit.id) ?? `#${edit.id}`;
  const what = piece === undefined ? "" : ` ${typeof piece === "string" ? JSON.stringify(piece) : "bytes"}`;
  return `${edit.do}${what} at ${edit.position}, pass ${edit.step + 1}`;
}

/** The first pass in which two runs differ; -1: none.
 * @param {Trace} one
 * @param {Trace} other */
export function firstDifference(one, other) {
  const most = Math.max(one.frames.length, other.frames.length);
  for (let at = 0; at < most; at++) {
    const [a, b] = [one.frames[at], other.frames[at]];
    if (!a || !b || a.ids.length !== b.ids.length || a.ids.some((id, k) => id !== b.ids[k])) return at;
  }
  return -1;
}

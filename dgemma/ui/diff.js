// @ts-check
// Differences of two texts: Myers' algorithm on words or lines. Knows no elements.

/** @typedef {{ kind: "same" | "old" | "new", text: string }} Part */
/** @typedef {{ oldStart: number, oldEnd: number, newStart: number, newEnd: number }} Change */

/** More edits than this are not looked for: the middle then counts as replaced. */
const MOST_EDITS = 2000;

/** A text in words and the blanks between them; joined they are the text.
 * @param {string} text */
export function words(text) {
  return [...new Intl.Segmenter(undefined, { granularity: "word" }).segment(text)].map((one) => one.segment);
}

/** A text in lines, each with its end; joined they are the text.
 * @param {string} text */
export function lines(text) {
  return text.match(/[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+/g) ?? [];
}

/** Where two lists differ, in order: ranges of the old one and what they became in the new one.
 * @param {readonly unknown[]} old
 * @param {readonly unknown[]} now
 * @returns {Change[]} */
export function changes(old, now) {
  let start = 0;
  while (start < old.length && start < now.length && old[start] === now[start]) start++;
  let [oldEnd, newEnd] = [old.length, now.length];
  while (oldEnd > start && newEnd > start && old[oldEnd - 1] === now[newEnd - 1]) {
    oldEnd--;
    newEnd--;
  }
  if (start === oldEnd && start === newEnd) return [];
  const steps = path(old.slice(start, oldEnd), now.slice(start, newEnd));
  if (!steps) return [{ oldStart: start, oldEnd, newStart: start, newEnd }];
  /** @type {Change[]} */
  const found = [];
  let [x, y] = [start, start];
  for (const step of steps) {
    if (step === "same") [x, y] = [x + 1, y + 1];
    else {
      const last = found.at(-1);
      const open = last && last.oldEnd === x && last.newEnd === y ? last : null;
      const change = open ?? { oldStart: x, oldEnd: x, newStart: y, newEnd: y };
      if (!open) found.push(change);
      if (step === "old") change.oldEnd = ++x;
      else change.newEnd = ++y;
    }
  }
  return found;
}

/** The shortest way from one list to another; null if it has more than `MOST_EDITS` edits.
 * @param {readonly unknown[]} old
 * @param {readonly unknown[]} now
 * @returns {("same" | "old" | "new")[] | null} */
function path(old, now) {
  const [n, m] = [old.length, now.length];
  const most = Math.min(n + m, MOST_EDITS);
  const reach = new Int32Array(2 * most + 2); // diagonal -> the furthest place in `old`
  /** @type {Int32Array[]} */
  const history = [];
  for (let edits = 0; edits <= most; edits++) {
    history.push(reach.slice(most - edits, most + edits + 2));
    for (let k = -edits; k <= edits; k += 2) {
      const down = k === -edits || (k !== edits && reach[most + k - 1] < reach[most + k + 1]);
      let x = down ? reach[most + k + 1] : reach[most + k - 1] + 1;
      while (x < n && x - k < m && old[x] === now[x - k]) x++;
      reach[most + k] = x;
      if (x >= n && x - k >= m) return back(history, n, m);
    }
  }
  return null;
}

/** @param {Int32Array[]} history the reach before each number of edits, from its lowest diagonal on
 * @param {number} x
 * @param {number} y */
function back(history, x, y) {
  /** @type {("same" | "old" | "new")[]} */
  const steps = [];
  for (let edits = history.length - 1; edits >= 0; edits--) {
    const [reach, k] = [history[edits], x - y];
    const at = (/** @type {number} */ diagonal) => reach[diagonal + edits] ?? 0;
    const down = k === -edits || (k !== edits && at(k - 1) < at(k + 1));
    const before = edits === 0 ? 0 : down ? at(k + 1) : at(k - 1);
    const beforeY = edits === 0 ? 0 : before - (down ? k + 1 : k - 1);
    for (; x > before && y > beforeY; x--, y--) steps.push("same");
    if (edits) steps.push(down ? "new" : "old");
    [x, y] = [before, beforeY];
  }
  return steps.reverse();
}

/** Two texts as one list of parts: common, only in the old one, only in the new one.
 * @param {string} old
 * @param {string} now
 * @param {(text: string) => string[]} [split]
 * @returns {Part[]} */
export function parts(old, now, split = words) {
  const [before, after] = [split(old), split(now)];
  /** @type {Part[]} */
  const found = [];
  const add = (/** @type {Part["kind"]} */ kind, /** @type {string[]} */ pieces) => {
    if (pieces.length) found.push({ kind, text: pieces.join("") });
  };
  let at = 0;
  for (const one of changes(before, after)) {
    add("same", before.slice(at, one.oldStart));
    add("old", before.slice(one.oldStart, one.oldEnd));
    add("new", after.slice(one.newStart, one.newEnd));
    at = one.oldEnd;
  }
  add("same", before.slice(at));
  return found;
}

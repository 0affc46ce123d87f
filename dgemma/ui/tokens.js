// @ts-check
// What a token looks like: visible marks, parts of characters, words for a screen reader.
// Knows pieces of text and bytes; no elements.

/** @typedef {string | Uint8Array} Piece text, or bytes that are no whole UTF-8 */
/** @typedef {Map<number, Piece>} Pieces by token id */
/** @typedef {Map<number, string>} Controls names of control tokens by id; never by spelling */
/** @typedef {{ text: string, kind: "text" | "control" | "mark" | "part" }} Shown */

export const STATES = ["re-noised", "accepted", "pinned"];
export const SHAPES = ["○", "●", "◆"];

/** A byte of entropy is so many parts of a nat. */
export const PER_NAT = 64;

const MARKS = new Map([["\n", "⏎"], ["\r", "␍"], ["\t", "⇥"]]);
const NAMES = new Map([["\n", "newline"], ["\r", "return"], ["\t", "tab"], ["", "nothing"]]);
/** What has no shape of its own: controls, format characters such as bidi marks, odd blanks. */
const INVISIBLE = new RegExp(
  "[\\p{Cc}\\p{Cf}\\p{Co}\\p{Cn}\\p{Zl}\\p{Zp}" +
    "\\u00a0\\u115f\\u1160\\u2000-\\u200a\\u3000\\u3164\\ufe00-\\ufe0f]",
  "u",
);
const JOINED = /^[\u200d\ufe0f]$/; // within an emoji of several characters
const segments = new Intl.Segmenter(undefined, { granularity: "grapheme" });

/** The characters of a text as people count them.
 * @param {string} text */
export function graphemes(text) {
  return Array.from(segments.segment(text), (one) => one.segment);
}

/** At most so many characters, with an ellipsis where some are left out.
 * @param {string} text
 * @param {number} most */
export function shorten(text, most) {
  if (text.length <= most) return text;
  const found = graphemes(text.slice(0, 40 * most));
  return found.length <= most && text.length <= 40 * most ? text : `${found.slice(0, most - 1).join("")}…`;
}

/** A character that cannot be seen, or turns the line round, by its number: U+202E.
 * @param {string} char */
function named(char) {
  return `U+${/** @type {number} */ (char.codePointAt(0)).toString(16).toUpperCase().padStart(4, "0")}`;
}

/** A text with everything visible. Only outer blanks are marked.
 * @param {string} text */
export function visible(text) {
  if (text === "") return "∅";
  const marked = graphemes(text).map((cluster) => {
    if (MARKS.has(cluster)) return MARKS.get(cluster);
    if (cluster === "\r\n") return "␍⏎";
    const chars = Array.from(cluster);
    const seen = chars.map((char) => {
      if (chars.length > 1 && JOINED.test(char)) return char;
      return MARKS.get(char) ?? (INVISIBLE.test(char) ? named(char) : char);
    });
    return /^\p{M}/u.test(cluster) && !INVISIBLE.test(chars[0]) ? `◌${seen.join("")}` : seen.join("");
  });
  for (let i = 0; i < marked.length && marked[i] === " "; i++) marked[i] = "␣";
  for (let i = marked.length - 1; i >= 0 && marked[i] === " "; i--) marked[i] = "␣";
  return marked.join("");
}

/** One token by itself.
 * @param {number} id
 * @param {Pieces} pieces
 * @param {Controls} [controls]
 * @returns {Shown} */
export function shown(id, pieces, controls) {
  const known = seen.get(pieces) ?? new Map();
  if (!known.size) seen.set(pieces, known);
  let made = known.get(id);
  if (!made) {
    made = make(id, pieces, controls);
    if (pieces.has(id)) known.set(id, made);
  }
  return made;
}

/** What was made of the pieces of a run, which do not change: segmenting takes time in every frame. */
const seen = new WeakMap();

/** @param {number} id
 * @param {Pieces} pieces
 * @param {Controls} [controls]
 * @returns {Shown} */
function make(id, pieces, controls) {
  const control = controls?.get(id);
  if (control !== undefined) return { text: visible(control), kind: "control" };
  const piece = pieces.get(id);
  if (piece === undefined) return { text: `#${id}`, kind: "mark" };
  if (typeof piece !== "string") return { text: Array.from(piece, hex).join(" "), kind: "part" };
  return { text: visible(piece), kind: /[\p{L}\p{N}\p{P}\p{S}]/u.test(piece) ? "text" : "mark" };
}

/** @param {number} byte */
function hex(byte) {
  return byte.toString(16).toUpperCase().padStart(2, "0");
}

/** A canvas of tokens. Bytes of neighbours are joined: a whole character stands in its first cell,
 * the others show which part they are, and bytes that make no character show their numbers.
 * @param {ArrayLike<number>} ids
 * @param {Pieces} pieces
 * @param {Controls} [controls]
 * @returns {Shown[]} */
export function cells(ids, pieces, controls) {
  /** @type {Shown[]} */
  const found = [];
  for (let at = 0; at < ids.length; ) {
    let end = at;
    while (end < ids.length && isBytes(ids[end], pieces, controls)) end++;
    if (end > at) found.push(...joined(ids, at, end, pieces));
    else found.push(shown(ids[end++], pieces, controls));
    at = end;
  }
  return found;
}

/** @param {number} id @param {Pieces} pieces @param {Controls} [controls] */
function isBytes(id, pieces, controls) {
  return pieces.get(id) instanceof Uint8Array && !controls?.has(id);
}

/** @param {ArrayLike<number>} ids
 * @param {number} start
 * @param {number} end
 * @param {Pieces} pieces
 * @returns {Shown[]} */
function joined(ids, start, end, pieces) {
  const bytes = [];
  const owner = []; // byte -> its cell
  for (let at = start; at < end; at++) {
    for (const byte of /** @type {Uint8Array} */ (pieces.get(ids[at]))) {
      bytes.push(byte);
      owner.push(at - start);
    }
  }
  const texts = Array.from({ length: end - start }, () => /** @type {string[]} */ ([]));
  for (let at = 0; at < bytes.length; ) {
    const char = character(bytes, at);
    if (char === null) {
      texts[owner[at]].push(hex(bytes[at++]));
      continue;
    }
    const size = new TextEncoder().encode(char).length;
    texts[owner[at]].push(visible(char));
    for (let k = 1; k < size; k++) {
      const cell = owner[at + k];
      if (cell !== owner[at + k - 1]) texts[cell].push(`…${k + 1}/${size}`);
    }
    at += size;
  }
  return texts.map((one) => ({ text: one.join(" ") || "∅", kind: "part" }));
}

/** The character that begins at a byte, or null.
 * @param {number[]} bytes
 * @param {number} at */
function character(bytes, at) {
  const size = bytes[at] < 0x80 ? 1 : bytes[at] < 0xe0 ? 2 : bytes[at] < 0xf0 ? 3 : 4;
  try {
    const whole = new Uint8Array(bytes.slice(at, at + size));
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(whole);
  } catch {
    return null;
  }
}

/** The text of tokens up to the first that ends an answer, without control tokens.
 * @param {ArrayLike<number>} ids
 * @param {Pieces} pieces
 * @param {Set<number>} ends
 * @param {Controls} [controls] */
export function draft(ids, pieces, ends, controls) {
  const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  const encoder = new TextEncoder();
  let text = "";
  for (let at = 0; at < ids.length && !ends.has(ids[at]); at++) {
    const piece = controls?.has(ids[at]) ? "" : pieces.get(ids[at]) ?? "";
    text += decoder.decode(typeof piece === "string" ? encoder.encode(piece) : piece, { stream: true });
  }
  return text + decoder.decode();
}

/** A token in words: "blank Hello", "newline".
 * @param {string} text
 * @returns {string} */
export function spoken(text) {
  const name = NAMES.get(text);
  if (name) return name;
  const core = text.trim();
  const blank = (/** @type {string} */ char) => NAMES.get(char) ?? (char === " " ? "blank" : named(char));
  if (core === "") return Array.from(text, blank).join(" ");
  const at = text.indexOf(core);
  const [before, after] = [text.slice(0, at), text.slice(at + core.length)];
  return [before && spoken(before), visible(core), after && spoken(after)].filter(Boolean).join(" ");
}

/** Nats as a person reads them.
 * @param {number} byte */
export function nats(byte) {
  return byte === 255 ? "3.98 or more" : (byte / PER_NAT).toFixed(2);
}

/** One of 17 classes of entropy: 16 from 0 to 2 nats, and one for more.
 * @param {number} byte */
export function level(byte) {
  return Math.min(16, byte >> 3);
}

/** The mean entropy of a frame in nats.
 * @param {ArrayLike<number>} bytes */
export function meanNats(bytes) {
  let sum = 0;
  for (let at = 0; at < bytes.length; at++) sum += bytes[at];
  return bytes.length ? sum / bytes.length / PER_NAT : 0;
}

/** How many positions are re-noised, accepted and pinned.
 * @param {ArrayLike<number>} states */
export function counts(states) {
  const found = [0, 0, 0];
  for (let at = 0; at < states.length; at++) found[states[at]]++;
  return found;
}

/** A probability from its logarithm.
 * @param {number} logprob */
export function percent(logprob) {
  const value = 100 * Math.exp(logprob);
  return value < 0.1 ? "< 0.1 %" : `${value.toFixed(1)} %`;
}

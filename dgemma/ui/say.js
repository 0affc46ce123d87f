// @ts-check
// What a screen reader is told: one polite line, at most one sentence in five seconds.
// Knows the line; no screens.

import { text } from "./dom.js";

const EVERY_MS = 5000;
let saidAt = -Infinity;
let timer = 0;
/** @type {{ sentence: string, must: boolean } | null} */
let next = null;

/** Says a sentence now or as soon as it may. The newest one counts, but one that `must` be said, such
 * as an end, gives way only to another of its kind.
 * @param {string} sentence
 * @param {{ must?: boolean }} [options] */
export function say(sentence, { must = false } = {}) {
  if (next?.must && !must) return;
  next = { sentence, must };
  if (!timer) timer = setTimeout(speak, Math.max(0, saidAt + EVERY_MS - performance.now()));
}

function speak() {
  timer = 0;
  const line = document.getElementById("say");
  if (!next || !line) return;
  saidAt = performance.now();
  text(line, next.sentence);
  next = null;
}

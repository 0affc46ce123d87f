// @ts-check
// Answers as Markdown. The only module that puts HTML into the page, and only what the server's own
// sanitising route made of a text. Knows that route.

import { json } from "./api.js";
import { put } from "./dom.js";

const policy = /** @type {any} */ (window).trustedTypes?.createPolicy("dgemma", {
  createHTML: (/** @type {string} */ html) => html,
});

/** Shows a text as Markdown in an element; as plain text if the server cannot render it.
 * @param {HTMLElement} element
 * @param {string} markdown
 * @param {AbortSignal} [signal] */
export async function render(element, markdown, signal) {
  try {
    const { html } = await json("/ui/render", { body: { markdown }, signal });
    if (typeof html !== "string") throw new Error("no HTML");
    element.innerHTML = policy ? policy.createHTML(html) : html;
    element.classList.add("rendered");
  } catch (error) {
    if (signal?.aborted) throw error;
    put(element, markdown);
    element.classList.remove("rendered");
  }
}

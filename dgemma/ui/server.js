// @ts-check
// What the server is and can do: model, width, device, control tokens, fields that it takes.
// Knows the routes that tell it; no elements.

import { ApiError, json } from "./api.js";
import { store } from "./store.js";

/** @typedef {{ name: string, width: number, context: number, device: string, version: string,
 *   controls: Map<number, string>, ends: Set<number>, examples: string[], can: Record<string, boolean>,
 *   fields: Set<string>, state: "starting" | "ready" | "locked" | "away", props: any }} Server */

/** What a newcomer must know of the bundled model. */
export const NANO = "nano is a toy that knows seven made-up tasks, such as Sudoku and JSON from a sentence. "
  + "It answers anything else with confident nonsense.";

/** @type {import("./store.js").Store<Server>} */
export const server = store(/** @type {Server} */ ({
  name: "", width: 0, context: 0, device: "", version: "", controls: new Map(), ends: new Set(),
  examples: [], can: {}, fields: new Set(), state: "starting", props: {},
}));

/** Asks the server what it is. */
export async function load() {
  try {
    const [card] = (await json("/v1/models")).data;
    const props = await json("/props").catch(() => ({})); // an older server has no such route
    const fields = await json("/openapi.json").then(fieldsOf).catch(() => new Set());
    server.set({
      name: card.id,
      width: card.canvas_length,
      context: card.max_model_len,
      device: [props.device, props.dtype].filter(Boolean).join(" "),
      version: props.version ?? "",
      controls: new Map((props.tokens?.control ?? []).map((/** @type {any} */ one) => [one.id, one.name])),
      ends: new Set(props.tokens?.end ?? []),
      examples: props.examples ?? [],
      can: props.can ?? {},
      fields,
      props,
      state: "ready",
    });
  } catch (error) {
    server.set({ state: error instanceof ApiError && error.status === 401 ? "locked" : "away" });
  }
}

/** The fields of `diffusion` in a request; a control is shown only if its field is there.
 * @param {any} document
 * @returns {Set<string>} */
function fieldsOf(document) {
  return new Set(Object.keys(document.components?.schemas?.Diffusion?.properties ?? {}));
}

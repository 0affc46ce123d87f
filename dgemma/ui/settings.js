// @ts-check
// The settings of a request: fields, the body that they make, and the field that an error blames.
// Knows the names of the chat API.

import { blame, field, h } from "./dom.js";

/** Name in the API, label, attributes, hint. A name with a dot is within an object. */
const NUMBERS = /** @type {[string, string, Record<string, any>, string][]} */ ([
  ["max_tokens", "Most tokens", { min: 1, step: 1 }, ""],
  ["seed", "Seed", { min: 0, step: 1 }, "empty: drawn"],
  ["diffusion.max_steps", "Most passes", { min: 1, step: 1 }, "of a canvas"],
  ["diffusion.entropy_bound", "Entropy bound", { min: 0, step: "any" }, "nats a pass may accept"],
  ["temperature", "Temperature", { min: 0, step: "any" }, ""],
]);
const EFFORTS = ["", "none", "low", "medium", "high"];

/** The fields, closed at first. */
export function settings() {
  /** @type {Map<string, HTMLInputElement | HTMLSelectElement>} */
  const fields = new Map();
  const shown = NUMBERS.map(([name, label, more, hint]) => {
    const input = h("input", { type: "number", inputmode: "decimal", placeholder: "default", ...more });
    fields.set(name, input);
    return field(label, input, hint);
  });
  const effort = h("select", null, EFFORTS.map((one) => h("option", { value: one }, one || "default")));
  fields.set("reasoning_effort", effort);
  const element = h("details", { class: "settings" }, h("summary", null, "Settings"),
    h("div", { class: "fields" }, shown, field("Thinking", effort, "reasoning effort")));

  return {
    element,
    fields,
    /** @returns {Record<string, any>} the part of a body that they make */
    body() {
      /** @type {Record<string, any>} */
      const made = {};
      for (const [name, input] of fields) {
        if (input.value === "") continue;
        const value = input === effort ? input.value : Number(input.value);
        const [outer, inner] = name.split(".");
        if (inner) made[outer] = { ...made[outer], [inner]: value };
        else made[outer] = value;
      }
      return made;
    },
    /** Marks the field that an error names, and no other.
     * @param {import("./api.js").ApiError | null} error */
    blame(error) {
      for (const [name, input] of fields) {
        const hit = error?.param && (error.param === name || name.endsWith(`.${error.param}`));
        blame(input, hit ? error.message : null);
        if (hit) element.open = true;
      }
    },
  };
}

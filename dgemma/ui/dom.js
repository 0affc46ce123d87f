// @ts-check
// Makes and updates elements. Knows properties, attributes and text; no HTML strings.

/** @typedef {Node | string | number | null | undefined | false | Child[]} Child */
/** @typedef {Record<string, any>} Props */

/** Names that are set as properties: their attributes give only the first value. */
const PROPERTIES = new Set(["value", "checked", "disabled", "hidden", "open", "selected"]);
const SVG = "http://www.w3.org/2000/svg";

/** An element: `h("button", { class: "quiet", onclick: go }, "Go")`.
 * A function under `onx` is a listener of the event `x`. `style` is an object. True and false set
 * and leave out an attribute, but are spelt out for `aria-`. Null and undefined are left out.
 * @template {keyof HTMLElementTagNameMap} T
 * @param {T} tag
 * @param {Props | null} [props]
 * @param {...Child} children
 * @returns {HTMLElementTagNameMap[T]} */
export function h(tag, props, ...children) {
  return /** @type {any} */ (fill(document.createElement(tag), props, children));
}

/** The same for SVG.
 * @param {string} tag
 * @param {Props | null} [props]
 * @param {...Child} children
 * @returns {SVGElement} */
export function svg(tag, props, ...children) {
  return /** @type {any} */ (fill(document.createElementNS(SVG, tag), props, children));
}

/** A picture of 24 by 24 from one path.
 * @param {string} path */
export function icon(path) {
  return svg("svg", { class: "icon", viewBox: "0 0 24 24", "aria-hidden": true }, svg("path", { d: path }));
}

/** @param {Element} element
 * @param {Props | null | undefined} props
 * @param {Child[]} children */
function fill(element, props, children) {
  for (const [name, value] of Object.entries(props ?? {})) set(element, name, value);
  append(element, children);
  return element;
}

/** Sets one property, attribute or listener.
 * @param {Element} element
 * @param {string} name
 * @param {any} value */
export function set(element, name, value) {
  if (name.startsWith("on")) {
    if (value) element.addEventListener(name.slice(2), value);
  } else if (name === "style") {
    for (const [key, one] of Object.entries(value)) {
      /** @type {HTMLElement} */ (element).style.setProperty(key, String(one));
    }
  } else if (PROPERTIES.has(name)) {
    /** @type {any} */ (element)[name] = value ?? "";
  } else if (value === null || value === undefined || (value === false && !name.startsWith("aria-"))) {
    element.removeAttribute(name);
  } else {
    const text = value === true && !name.startsWith("aria-") ? "" : String(value);
    if (element.getAttribute(name) !== text) element.setAttribute(name, text);
  }
}

/** @param {Element} parent
 * @param {Child[]} children */
function append(parent, children) {
  for (const child of children) {
    if (Array.isArray(child)) append(parent, child);
    else if (child instanceof Node) parent.appendChild(child);
    else if (child !== null && child !== undefined && child !== false) {
      parent.appendChild(document.createTextNode(String(child)));
    }
  }
}

/** Replaces what is in an element.
 * @param {Element} parent
 * @param {...Child} children */
export function put(parent, ...children) {
  parent.replaceChildren();
  append(parent, children);
}

/** Writes a text, but only if it differs; then nothing is laid out again.
 * @param {Node} node
 * @param {string} value */
export function text(node, value) {
  if (node.textContent !== value) node.textContent = value;
}

/** Makes the children of an element follow a list. An item keeps its element as long as its key is
 * in the list.
 * @template T
 * @param {Element & { keyed?: Map<any, Element> }} parent
 * @param {Iterable<T>} items
 * @param {(item: T) => unknown} keyOf
 * @param {(item: T) => Element} make
 * @param {(element: any, item: T) => void} [update] */
export function list(parent, items, keyOf, make, update) {
  const before = parent.keyed ?? new Map();
  /** @type {Map<any, T>} */
  const wanted = new Map();
  for (const item of items) {
    const key = keyOf(item);
    if (wanted.has(key)) throw new Error(`two items have the key ${String(key)}`);
    wanted.set(key, item);
  }
  /** @type {Map<any, Element>} */
  const now = new Map();
  let at = parent.firstElementChild;
  for (const [key, item] of wanted) {
    const element = before.get(key) ?? make(item);
    now.set(key, element);
    update?.(element, item);
    if (at && element === at) at = at.nextElementSibling;
    else parent.insertBefore(element, at);
  }
  for (const [key, element] of before) if (!now.has(key)) element.remove();
  parent.keyed = now;
}

let count = 0;

/** A control with its label, a hint and a place for an error about it.
 * @param {string} label
 * @param {HTMLElement} control
 * @param {string} [hint] */
export function field(label, control, hint) {
  control.id ||= `f${++count}`;
  const note = h("p", { class: "hint", id: `${control.id}-hint` }, hint);
  const error = h("p", { class: "error", id: `${control.id}-error`, hidden: true });
  const told = [hint && note.id, error.id].filter(Boolean).join(" ");
  set(control, "aria-describedby", told);
  return h("div", { class: "field" }, h("label", { for: control.id }, label), control, hint && note, error);
}

/** Marks a control that the server has refused, or takes the mark away.
 * @param {HTMLElement} control from `field`
 * @param {string | null} message */
export function blame(control, message) {
  const error = document.getElementById(`${control.id}-error`);
  if (!error) return;
  set(control, "aria-invalid", message ? "true" : null);
  text(error, message ?? "");
  error.hidden = !message;
}

/** Saves a text as a file of the user's.
 * @param {string} name
 * @param {string} content
 * @param {string} type */
export function download(name, content, type) {
  const url = URL.createObjectURL(new Blob([content], { type }));
  h("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

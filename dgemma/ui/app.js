// @ts-check
// The frame around the screens: links, routes, theme, key, keys. Knows which screens there are; not
// what they do.

import { ask, setKey } from "./api.js";
import { h, icon, put, set, text } from "./dom.js";
import { load, server } from "./server.js";
import { remember, remembered } from "./store.js";

/** A screen's module has `keys`, pairs of keys and what they do, and `make()`, which is called once
 * and gives a screen: its `element`, `show()`, which is called when it is opened, and `key(event)` for
 * keys that no field takes, which says whether it took one. */
const SCREENS = [
  {
    name: "lab", title: "Lab", load: () => import("./screens/lab.js"),
    path: "M4 4h5v5H4zM15 4h5v5h-5zM4 15h5v5H4zM15 15h5v5h-5z",
  },
];
const THEMES = [["system", "System"], ["light", "Light"], ["dark", "Dark"]];
const WORDS = {
  ready: "", starting: "", locked: "The server needs a key.", away: "The server does not answer.",
};
const KEYS = [["?", "this sheet"], ["Tab", "next control"]];

/** @type {Map<string, any>} screens that were opened, with their modules */
const opened = new Map();
let current = "";
const main = h("main", { id: "main", tabindex: -1 });
const keyButton = h("button", { type: "button", class: "quiet", hidden: true, onclick: enterKey }, "API key");

/** Opens the screen that the address names. Nothing is ever sent because of an address. */
async function route() {
  const name = location.hash.replace(/^#\//, "");
  const screen = SCREENS.find((one) => one.name === name) ?? SCREENS[0];
  if (screen.name === current) return;
  current = screen.name;
  for (const link of document.querySelectorAll("#bar a")) {
    set(link, "aria-current", link.getAttribute("href") === `#/${current}` ? "page" : null);
  }
  document.title = `${screen.title} · dgemma`;
  if (!opened.has(current)) {
    const module = await screen.load();
    const made = module.make();
    opened.set(screen.name, { screen: made, keys: module.keys });
    main.append(made.element);
  }
  for (const [one, { screen: other }] of opened) other.element.hidden = one !== current;
  opened.get(current)?.screen.show();
}

/** @param {string} name */
function setTheme(name) {
  set(document.documentElement, "data-theme", name === "system" ? null : name);
  remember("theme", name);
  document.dispatchEvent(new Event("dgemma-theme"));
}

function bar() {
  const links = SCREENS.map((one) =>
    h("li", null, h("a", { href: `#/${one.name}` }, icon(one.path), h("span", null, one.title))));
  const theme = h("select", { "aria-label": "Theme", onchange: () => setTheme(theme.value) },
    THEMES.map(([value, words]) => h("option", { value }, words)));
  theme.value = remembered("theme", "system");
  setTheme(theme.value);
  const model = h("p", { class: "model" });
  server.watch((one) => one, (one) => {
    const facts = [one.name, one.width && `canvas ${one.width}`, one.device].filter(Boolean);
    if (one.state === "ready") put(model, facts.map((fact) => h("span", null, fact)));
    else text(model, WORDS[one.state]);
  });
  const props = { type: "button", class: "quiet help", onclick: sheet };
  const button = h("button", props, "Keys ", h("kbd", null, "?"));
  return h("nav", { id: "bar", "aria-label": "Screens" },
    h("p", { class: "wordmark" }, "dgemma"), h("ul", null, links),
    h("div", { class: "foot" }, model, h("div", { class: "buttons" }, theme, keyButton, button)));
}

/** Takes another key, for example after a form was closed without one. */
async function enterKey() {
  const given = await ask.key(false);
  if (given === null) return;
  setKey(given);
  load();
}

/** The form for an API key; a password field, so that a browser's own manager may keep it. */
function keyForm() {
  const input = h("input", { id: "key", type: "password", autocomplete: "current-password", required: true });
  const told = h("p", { class: "error", role: "alert" });
  const user = h("input", { type: "text", autocomplete: "username", value: "dgemma", hidden: true });
  const cancel = h("button", { type: "button", class: "quiet", onclick: () => dialog.close() }, "Cancel");
  const dialog = h("dialog", { class: "sheet", "aria-labelledby": "key-title", onclose: () => answer(null) },
    h("form", { onsubmit: submitted }, h("h2", { id: "key-title" }, "This server needs a key"), user,
      h("label", { for: "key" }, "API key"), input, told,
      h("p", { class: "hint" }, "It stays in this tab's memory and ends with it."),
      h("div", { class: "buttons" }, h("button", { type: "submit", class: "primary" }, "Use key"), cancel)));
  /** @type {((key: string | null) => void)[]} requests that wait for the same answer */
  let waiting = [];

  /** @param {string | null} key */
  function answer(key) {
    const all = waiting;
    waiting = [];
    for (const resolve of all) resolve(key);
  }

  /** @param {Event} event */
  function submitted(event) {
    event.preventDefault();
    answer(input.value);
    input.value = "";
    dialog.close();
  }

  ask.key = (refused) =>
    new Promise((resolve) => {
      waiting.push(resolve);
      keyButton.hidden = false;
      text(told, refused ? "The server refused this key." : "");
      if (!dialog.open) dialog.showModal();
      input.focus();
    });
  return dialog;
}

const list = h("dl");
const help = h("dialog", { class: "sheet", "aria-labelledby": "help-title" },
  h("form", { method: "dialog" }, h("h2", { id: "help-title" }, "Keys"), list,
    h("button", { type: "button", class: "quiet", onclick: () => help.close() }, "Close")));

/** Shows the keys of the page and of the screen. */
function sheet() {
  const all = [...(opened.get(current)?.keys ?? []), ...KEYS];
  put(list, all.map(([key, what]) => [h("dt", null, h("kbd", null, key)), h("dd", null, what)]));
  help.showModal();
}

/** @param {KeyboardEvent} event */
function key(event) {
  const target = /** @type {HTMLElement} */ (event.target);
  const taken = target.closest("input, textarea, select, dialog, [contenteditable]");
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented || taken) return;
  if (event.key === " " && target.closest("button, summary, a")) return;
  if (event.key === "?") sheet();
  else if (!opened.get(current)?.screen.key(event)) return;
  event.preventDefault();
}

/** A file that is dropped beside a screen's own place must not take the page's place.
 * @param {DragEvent} event */
function stay(event) {
  if (event.dataTransfer?.types.includes("Files")) event.preventDefault();
}

/** @param {Event} event */
function skip(event) {
  event.preventDefault(); // the address is for routes
  main.focus();
}

put(document.body,
  h("a", { class: "skip", href: "#main", onclick: skip }, "Skip to the content"), bar(), main,
  h("p", { id: "say", role: "status", class: "unseen" }), keyForm(), help);
addEventListener("hashchange", route);
addEventListener("keydown", key);
addEventListener("dragover", stay);
addEventListener("drop", stay);
await Promise.all([load(), route()]);

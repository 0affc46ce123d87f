// @ts-check
// A value that others watch, and the few settings that this browser keeps. Knows no elements.

/** @template {Record<string, any>} S
 * @typedef {{
 *   get: () => Readonly<S>,
 *   set: (patch: Partial<S>) => void,
 *   watch: <V>(pick: (state: Readonly<S>) => V, run: (value: V) => void) => () => void,
 * }} Store */

/** A store. `watch` runs at once and then whenever what it picks has changed; it returns a function
 * that ends it.
 * @template {Record<string, any>} S
 * @param {S} initial
 * @returns {Store<S>} */
export function store(initial) {
  let state = Object.freeze({ ...initial });
  /** @type {Set<() => void>} */
  const watchers = new Set();
  return {
    get: () => state,
    set(patch) {
      if (Object.entries(patch).every(([name, value]) => Object.is(state[name], value))) return;
      state = Object.freeze({ ...state, ...patch });
      for (const tell of [...watchers]) tell();
    },
    watch(pick, run) {
      let last = pick(state);
      const tell = () => {
        const value = pick(state);
        if (Object.is(value, last)) return;
        last = value;
        run(value);
      };
      watchers.add(tell);
      run(last);
      return () => watchers.delete(tell);
    },
  };
}

/** A setting of this browser. Never for keys, prompts or answers.
 * @param {string} name
 * @param {string} fallback */
export function remembered(name, fallback) {
  try {
    return localStorage.getItem(`dgemma.${name}`) ?? fallback;
  } catch {
    return fallback; // storage may be switched off
  }
}

/** @param {string} name
 * @param {string} value */
export function remember(name, value) {
  try {
    localStorage.setItem(`dgemma.${name}`, value);
  } catch {
    // then it holds until the page is closed
  }
}

// @ts-check
// Requests to the server: key, errors, event streams. Knows HTTP; no elements, no screens.

/** @typedef {{ method?: string, body?: unknown, signal?: AbortSignal }} Options */

/** The API key: in this variable alone, so that it ends with the page. */
let key = "";

/** Time, as tests replace it. */
export const clock = {
  /** @param {number} ms
   * @param {AbortSignal} [signal]
   * @returns {Promise<void>} */
  wait(ms, signal) {
    return new Promise((resolve, reject) => {
      const timer = setTimeout(resolve, ms);
      signal?.addEventListener("abort", () => (clearTimeout(timer), reject(signal.reason)), { once: true });
    });
  },
};

/** How the page asks for a key. Set by the app; gives the key, or null if the user declines. */
export const ask = {
  /** @type {(refused: boolean) => Promise<string | null>} */
  key: async () => null,
};

/** An error that the server answered. */
export class ApiError extends Error {
  /** @param {number} status 0: an error within a stream
   * @param {{ message?: string, type?: string, param?: string | null, code?: string | null }} told
   * @param {number | null} [retryAfterS] */
  constructor(status, told, retryAfterS = null) {
    super(told.message || `the server answered ${status}`);
    this.status = status;
    this.type = told.type ?? "";
    this.param = told.param ?? null;
    this.code = told.code ?? null;
    this.retryAfterS = retryAfterS;
  }
}

/** The connection failed or ended before the answer did. */
export class CutOff extends Error {}

/** @param {string} value */
export function setKey(value) {
  key = value;
}

export function hasKey() {
  return key !== "";
}

/** One request; with an API key that is missing or wrong it asks for it and tries again.
 * @param {string} path
 * @param {Options} [options]
 * @returns {Promise<Response>}
 * @throws {ApiError} of any status but 2xx
 * @throws {CutOff} if there is no answer */
export async function request(path, { method, body, signal } = {}) {
  for (;;) {
    /** @type {Record<string, string>} */
    const headers = {};
    const sent = key;
    if (sent) headers.Authorization = `Bearer ${sent}`;
    if (body !== undefined) headers["Content-Type"] = "application/json";
    /** @type {Response} */
    let response;
    try {
      response = await fetch(path, {
        method: method ?? (body === undefined ? "GET" : "POST"),
        body: body === undefined ? undefined : JSON.stringify(body),
        headers,
        signal,
        credentials: "omit",
      });
    } catch (error) {
      if (signal?.aborted) throw signal.reason;
      throw new CutOff("the server cannot be reached");
    }
    if (response.ok) return response;
    const error = await refusal(response);
    if (response.status !== 401) throw error;
    // Another request may have been given a key in the meantime.
    const given = key !== sent ? key : await ask.key(sent !== "");
    if (signal?.aborted) throw signal.reason;
    if (given === null) throw error;
    key = given;
  }
}

/** @param {string} path
 * @param {Options} [options]
 * @returns {Promise<any>} */
export async function json(path, options) {
  return (await request(path, options)).json();
}

/** @param {Response} response */
async function refusal(response) {
  const after = Number(response.headers.get("Retry-After") ?? NaN);
  const retryAfterS = Number.isFinite(after) && after >= 0 ? Math.min(after, 3600) : null;
  let told = {};
  try {
    const body = await response.json();
    const error = body.error ?? body.detail ?? body;
    told = typeof error === "string" ? { message: error } : error;
  } catch {
    // a proxy's page: the status is all there is
  }
  return new ApiError(response.status, told ?? {}, retryAfterS);
}

/** A parser of server-sent events that takes bytes however they are cut.
 * @returns {{ feed: (bytes: Uint8Array) => { name: string, data: string }[] }} */
export function eventParser() {
  const decoder = new TextDecoder(); // drops a byte order mark, keeps halves of characters
  let rest = "";
  let name = "";
  /** @type {string[]} */
  let data = [];

  /** @param {string} line @param {{ name: string, data: string }[]} found */
  function take(line, found) {
    if (line === "") {
      if (data.length) found.push({ name, data: data.join("\n") });
      [name, data] = ["", []];
      return;
    }
    const colon = line.indexOf(":");
    const what = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (what === "data") data.push(value);
    else if (what === "event") name = value;
  }

  return {
    feed(bytes) {
      /** @type {{ name: string, data: string }[]} */
      const found = [];
      rest += decoder.decode(bytes, { stream: true });
      let from = 0;
      const end = /\r\n|\n|\r/g;
      for (let hit = end.exec(rest); hit; hit = end.exec(rest)) {
        if (hit[0] === "\r" && end.lastIndex === rest.length) break; // its \n may still come
        take(rest.slice(from, hit.index), found);
        from = end.lastIndex;
      }
      rest = rest.slice(from);
      return found;
    },
  };
}

/** Posts a body and gives the events of the answer. Ends at `[DONE]`.
 * @param {string} path
 * @param {unknown} body
 * @param {{ signal?: AbortSignal, alive?: () => void }} [options] `alive` is called for every piece
 *   of the answer, heartbeats too
 * @returns {AsyncGenerator<any>}
 * @throws {ApiError} that the server sends before or within the stream
 * @throws {CutOff} if the connection ends before the answer */
export async function* events(path, body, { signal, alive } = {}) {
  const response = await request(path, { body, signal });
  if (!response.body) throw new CutOff("the answer is empty");
  const reader = response.body.getReader();
  const parser = eventParser();
  try {
    for (;;) {
      let piece;
      try {
        piece = await reader.read();
      } catch {
        if (signal?.aborted) throw signal.reason;
        throw new CutOff("the connection was lost");
      }
      if (piece.done) throw new CutOff("the answer ended too early");
      alive?.();
      for (const { data } of parser.feed(piece.value)) {
        if (data === "[DONE]") return;
        yield checked(data);
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // closes the connection: the server stops working on it
  }
}

/** @param {string} data */
function checked(data) {
  let event;
  try {
    event = JSON.parse(data);
  } catch {
    throw new CutOff("the server sent an event that is not JSON");
  }
  if (event?.error) throw new ApiError(0, event.error);
  return event;
}

/** Counts down the seconds of a 429.
 * @param {number} seconds
 * @param {(left: number) => void} tick
 * @param {AbortSignal} [signal] */
export async function countDown(seconds, tick, signal) {
  for (let left = Math.ceil(seconds); left > 0; left--) {
    tick(left);
    await clock.wait(1000, signal);
  }
  tick(0);
}

/** Returns when the server answers again, which is asked every two seconds.
 * @param {AbortSignal} [signal] */
export async function untilHealthy(signal) {
  for (;;) {
    try {
      await request("/health", { signal });
      return;
    } catch {
      if (signal?.aborted) throw signal.reason;
    }
    await clock.wait(2000, signal);
  }
}

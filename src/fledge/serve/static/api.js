// Talking with the server: JSON, streams of server-sent events, and errors as things a person can act on.

/** What went wrong. `kind` is a key of the words ("error.offline"); `detail` is the server's own sentence. */
export class Failure extends Error {
  constructor(kind, status = 0, detail = "") {
    super(detail || kind);
    this.kind = kind;
    this.status = status;
    this.detail = detail;
  }
}

const KINDS = {
  400: "request",
  401: "key",
  403: "forbidden",
  404: "gone",
  409: "conflict",
  413: "long",
  421: "key",
  422: "request",
  429: "busy",
};

async function failed(response) {
  let detail = "";
  try {
    detail = (await response.json()).error.message;
  } catch {
    // not one of the server's own errors: the status has to do
  }
  return new Failure(KINDS[response.status] || "server", response.status, String(detail || ""));
}

async function send(path, body, signal) {
  const request = { signal, credentials: "same-origin", headers: {} };
  if (body !== undefined) {
    request.method = "POST";
    request.headers = { "Content-Type": "application/json", "X-Fledge": "1" };
    request.body = JSON.stringify(body);
  }
  let response;
  try {
    response = await fetch(path, request);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure("offline");
  }
  if (!response.ok) throw await failed(response);
  return response;
}

/** GET a JSON answer; null where the server has nothing (204). */
export async function get(path, signal) {
  const response = await send(path, undefined, signal);
  return response.status === 204 ? null : response.json();
}

/** POST a JSON body; the JSON answer. */
export async function post(path, body, signal) {
  const response = await send(path, body, signal);
  return response.status === 204 ? null : response.json();
}

/** POST a body and hear the events of the answer one by one. Raises Failure, or AbortError after `signal`. */
export async function* events(path, body, signal) {
  const response = await send(path, body, signal);
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      rest += decoder.decode(value, { stream: true });
      const parts = rest.split("\n\n");
      rest = parts.pop();
      for (const part of parts) {
        const event = parsed(part);
        if (event) yield event;
      }
    }
  } catch (error) {
    if (error.name === "AbortError" || error instanceof Failure) throw error;
    throw new Failure("offline");
  } finally {
    reader.cancel().catch(() => {});
  }
}

function parsed(part) {
  const data = part
    .split("\n")
    .filter((line) => line.startsWith("data:"))
    .map((line) => line.slice(5).trim())
    .join("\n");
  if (!data || data === "[DONE]") return null;
  const event = JSON.parse(data);
  if (event.error) throw new Failure("server", 200, String(event.error.message || ""));
  return event;
}

let last = 0;
/** A UUIDv7: later ids sort behind earlier ones, also within a millisecond. Works without a secure context. */
export function uuid() {
  last = Math.max(Date.now(), last + 1);
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  const time = last.toString(16).padStart(12, "0");
  const hex = [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  const variant = (8 + (bytes[8] & 3)).toString(16);
  return `${time.slice(0, 8)}-${time.slice(8)}-7${hex.slice(13, 16)}-${variant}${hex.slice(17, 20)}-${hex.slice(20)}`;
}

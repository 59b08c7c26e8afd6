// The server: RunPod's routes, which both backs of the gateway have, and /page/data. If it asks for a
// login, the browser itself does.

const TIMEOUT = 60_000; // ms; a request only hands something over, no request waits for a picture

/** The server refused the request, or it does not answer (`status` 0). */
export class ServerError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

export const address = (path) => new URL(path, document.baseURI).href;
export const submit = (input) => send("run", { method: "POST", body: jsonOf({ input }) });
export const status = (id) => send(`status/${encodeURIComponent(id)}`);
export const cancel = (id) => send(`cancel/${encodeURIComponent(id)}`, { method: "POST", body: "{}" });
export const health = () => send("health");
export const data = () => send("page/data");

/** JSON text; seeds are digits, because a number of JavaScript is exact only up to 2^53. */
export function jsonOf(value, indent) {
  return JSON.stringify(value, null, indent).replace(/"seed":( ?)"(-?\d{1,20})"/g, '"seed":$1$2');
}

async function send(path, options = {}) {
  const answer = await request(path, options);
  const body = await answer.json().catch(() => null);
  if (answer.ok && body !== null) return body;
  const said = body?.detail ?? body?.error ?? body?.errors;
  throw new ServerError(
    typeof said === "string" ? said : `The server answered HTTP ${answer.status}.`,
    answer.status,
  );
}

async function request(path, options) {
  const headers = { "Content-Type": "application/json" };
  try {
    return await fetch(address(path), { ...options, headers, signal: AbortSignal.timeout(TIMEOUT) });
  } catch {
    throw new ServerError("The server does not answer.", 0);
  }
}

// Talks to the server that this page came from. The API key, if it wants one, lives here only.

let key = "";
let asking = null;

/** An answer that is no success; of status 0, none at all. */
export class ServerError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** For `catch`: what a browser says of a lost connection, said in words; a stop stays a stop. */
const lost = (message) => (error) => {
  throw error.name === "AbortError" ? error : new ServerError(0, message);
};

/** fetch, with the key; asks for it where the server does. Throws ServerError. */
export async function call(path, options = {}) {
  for (;;) {
    const sent = key;
    const headers = { ...options.headers };
    if (sent) headers.Authorization = `Bearer ${sent}`;
    const sending = fetch(path, { ...options, headers, cache: "no-store" });
    const answer = await sending.catch(lost("The server does not answer."));
    if (answer.ok) return answer;
    if (answer.status !== 401) throw new ServerError(answer.status, await messageOf(answer));
    if (sent === key) await askForKey(sent !== "");
    if (options.signal?.aborted) throw options.signal.reason;
  }
}

/** The JSON of a GET, or of a POST of `body`. */
export async function json(path, body, options = {}) {
  const post = body && {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  };
  return (await call(path, { ...options, ...post })).json();
}

/** The JSON of each server-sent event until the stream ends. */
export async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  try {
    for (;;) {
      const reading = reader.read().catch(lost("The connection to the server broke."));
      const { value, done } = await reading;
      if (done) return;
      text += value;
      let end;
      while ((end = text.indexOf("\n\n")) >= 0) {
        const data = text.slice(0, end).replace(/^data: /, "");
        text = text.slice(end + 2);
        if (data === "[DONE]") return;
        const event = JSON.parse(data);
        if (event.error) throw new ServerError(200, event.error.message);
        yield event;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

async function messageOf(answer) {
  try {
    return (await answer.json()).error.message;
  } catch {
    return `The server answered ${answer.status}`;
  }
}

/** One dialog, however many requests wait for it. */
function askForKey(wrong) {
  asking ??= new Promise((resolve) => {
    const dialog = document.getElementById("key-dialog");
    const form = document.getElementById("key-form");
    const input = document.getElementById("key");
    document.getElementById("key-error").textContent = wrong ? "The server does not know this key." : "";
    form.onsubmit = (event) => {
      event.preventDefault();
      key = input.value.trim();
      input.value = "";
      asking = null;
      dialog.close();
      resolve();
    };
    dialog.oncancel = (event) => event.preventDefault();
    dialog.showModal();
  });
  return asking;
}

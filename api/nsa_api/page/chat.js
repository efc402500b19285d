// The chat: sends the conversation, shows the answer as it streams, and how fast it came.

import { call, events, json } from "./server.js";

const $ = (id) => document.getElementById(id);

/** Wires the chat up. `onSend()` is told that a request was sent, `onStart(id, tokens)` its id as
    soon as it is known and the array of its token ids, which grows while it streams, and
    `onNothing()` that it may have ended before that. */
export function startChat({ onSend, onStart, onNothing }) {
  const history = [];
  let running = null;

  async function send() {
    const text = $("prompt").value.trim();
    if (!text || running || !schemaIsJson()) return;
    $("prompt").value = "";
    history.push({ role: "user", content: text });
    show("user", text);
    const answer = show("assistant", "");
    setRunning(new AbortController());
    answer.element.classList.add("busy");
    answer.figures("Waiting for the first token");
    onSend();
    try {
      const said = await stream(requestBody(history, await modelName()), answer, running.signal, onStart);
      history.push({ role: "assistant", content: said });
    } catch (error) {
      onNothing();
      const said = answer.text.textContent;
      if (!answer.element.isConnected) {
        // A new chat was begun, which knows nothing of this one.
      } else if (said) {
        history.push({ role: "assistant", content: said });
      } else {
        // It was never answered: it may be changed and sent again.
        history.pop();
        $("prompt").value ||= text;
      }
      if (error.name === "AbortError") {
        answer.note("stopped");
      } else {
        answer.fail(error.message);
      }
    } finally {
      answer.element.classList.remove("busy");
      setRunning(null);
    }
  }

  function setRunning(controller) {
    running = controller;
    $("send").disabled = controller !== null;
    $("stop").disabled = controller === null;
    if (!controller) $("prompt").focus({ preventScroll: true });
  }

  const stop = () => running?.abort();
  $("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  $("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      send();
    }
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") stop();
  });
  $("stop").addEventListener("click", stop);
  $("format").addEventListener("change", (event) => {
    $("schema-field").hidden = event.target.value !== "json_schema";
  });
  $("schema").addEventListener("input", (event) => event.target.setCustomValidity(""));
  $("clear").addEventListener("click", () => {
    stop();
    history.length = 0;
    $("messages").replaceChildren();
    $("prompt").focus();
  });
  $("example").addEventListener("click", () => {
    $("prompt").value = longExample();
    $("prompt").focus();
    $("prompt").scrollTop = $("prompt").scrollHeight;
  });
}

async function modelName() {
  return (await json("/v1/models")).data[0].id;
}

function requestBody(history, model) {
  const system = $("system").value.trim();
  const messages = system ? [{ role: "system", content: system }, ...history] : [...history];
  const body = {
    model,
    // An answer may be empty, which not every chat template takes back.
    messages: messages.filter((message) => message.content),
    stream: true,
    stream_options: { include_usage: true },
    return_token_ids: true,
  };
  if ($("temperature").value) body.temperature = Number($("temperature").value);
  if ($("max-tokens").value) body.max_completion_tokens = Number($("max-tokens").value);
  const format = $("format").value;
  if (format === "json_object") body.response_format = { type: format };
  if (format === "json_schema") {
    const schema = { name: "answer", schema: JSON.parse($("schema").value) };
    body.response_format = { type: format, json_schema: schema };
  }
  return body;
}

/** Whether the schema can be sent; if not, the field says so. */
function schemaIsJson() {
  const field = $("schema");
  if ($("format").value !== "json_schema") return true;
  try {
    JSON.parse(field.value);
    return true;
  } catch (error) {
    field.closest("details").open = true;
    field.setCustomValidity(`No JSON: ${error.message}`);
    return field.reportValidity();
  }
}

/** Streams one answer into its message; returns its text. */
async function stream(body, answer, signal, onStart) {
  const began = performance.now();
  const options = { method: "POST", headers: { "Content-Type": "application/json" }, signal };
  const response = await call("/v1/chat/completions", { ...options, body: JSON.stringify(body) });
  let tokens = null;
  let first = 0;
  let last = 0;
  let count = 0;
  let usage = null;
  for await (const chunk of events(response)) {
    if (!tokens) {
      tokens = chunk.prompt_token_ids ?? [];
      onStart(chunk.id, tokens);
    }
    usage = chunk.usage ?? usage;
    const choice = chunk.choices[0];
    if (!choice) continue;
    const ids = choice.token_ids ?? [];
    if (ids.length) {
      last = performance.now();
      first ||= last;
      count += ids.length;
      tokens.push(...ids);
    }
    if (choice.delta.content) answer.add(choice.delta.content);
    if (count) answer.figures(figures(began, first, last, count, usage));
  }
  if (count) answer.figures(figures(began, first, last, count, usage));
  return answer.text.textContent;
}

function figures(began, first, last, count, usage) {
  const parts = [`TTFT ${seconds(first - began)}`];
  if (count > 1) parts.push(`${((1000 * (count - 1)) / (last - first)).toFixed(1)} tokens/s`);
  parts.push(count === 1 ? "1 token" : `${count} tokens`);
  if (usage) {
    const cached = usage.prompt_tokens_details?.cached_tokens ?? 0;
    parts.push(`prompt ${usage.prompt_tokens}${cached ? `, ${cached} of them cached` : ""}`);
  }
  return parts.join(" · ");
}

const seconds = (ms) => (ms < 1000 ? `${ms.toFixed(0)} ms` : `${(ms / 1000).toFixed(2)} s`);

/** A new message at the end of the conversation. */
function show(role, content) {
  $("messages").querySelector(".hint")?.remove();
  const element = document.createElement("div");
  element.className = `message ${role}`;
  const who = document.createElement("span");
  who.className = "hidden";
  who.textContent = role === "user" ? "You: " : "Model: ";
  const text = document.createElement("div");
  text.className = "text";
  text.textContent = content;
  const line = document.createElement("p");
  line.className = "figures";
  element.append(who, text);
  if (role !== "user") element.append(line);
  $("messages").append(element);
  text.scrollTop = text.scrollHeight;
  scrollToEnd(true);
  return {
    element,
    text,
    add(piece) {
      const atEnd = isAtEnd();
      text.append(piece);
      scrollToEnd(atEnd);
    },
    figures(content) {
      line.textContent = content;
    },
    note(content) {
      line.textContent = text.textContent ? `${line.textContent} · ${content}` : content;
    },
    fail(message) {
      line.textContent = text.textContent ? `${line.textContent} · ${message}` : message;
      line.classList.add("error");
      scrollToEnd(true);
    },
  };
}

function isAtEnd() {
  const box = $("messages");
  return box.scrollHeight - box.scrollTop - box.clientHeight < 40;
}

function scrollToEnd(wanted) {
  if (wanted) $("messages").scrollTop = $("messages").scrollHeight;
}

/** A text of so many blocks that a model must choose which to read, and a question about one. */
function longExample() {
  const towns = ["Arles", "Bruges", "Cádiz", "Delft", "Evora", "Fez", "Ghent", "Hydra"];
  const lines = Array.from({ length: 85 }, (_, i) => {
    const town = towns[(i * 5) % towns.length];
    return `Day ${i + 1}: the ship left ${town} with ${((i * 37) % 83) + 12} barrels of salt.`;
  });
  lines.splice(20, 0, "Today the ship's cat had seven kittens.");
  const log = `Here is the log of a ship.\n${lines.join("\n")}`;
  return `${log}\n\nHow many kittens did the ship's cat have?`;
}

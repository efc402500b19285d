// The live view: one event a second, as tiles and a table of the requests in flight.

import { Tile } from "./charts.js";
import { call, events } from "./server.js";

const $ = (id) => document.getElementById(id);
const SECONDS_TO_RETRY = 2;
const FULL_ID = 30; // of shorter ones the server has cut the end off: they are another key's

const number = (value) => [
  value < 10 ? value.toFixed(1) : Math.round(value).toLocaleString("en"),
  "",
];
const duration = (value) =>
  value < 1 ? [(1000 * value).toFixed(value < 0.1 ? 1 : 0), "ms"] : [value.toFixed(2), "s"];
const share = (value) => [(100 * value).toFixed(value < 0.1 ? 1 : 0), "%"];

/** Follows the engine for as long as the page is open. `onLook(id)`: show this request. */
export function startLive({ onLook }) {
  const tiles = makeTiles($("tiles"));
  follow((figures) => {
    showState(figures.state);
    $("model").textContent = describe(figures.engine);
    tiles.add(figures);
    if (figures.requests) showRequests(figures.requests, figures.stats, onLook);
    else showNothingKnown();
  });
}

async function follow(onFigures) {
  for (;;) {
    try {
      for await (const figures of events(await call("/v1/live"))) onFigures(figures);
      showState("gone");
    } catch (error) {
      showState(error.status ? error.message : "gone");
    }
    await new Promise((resolve) => setTimeout(resolve, 1000 * SECONDS_TO_RETRY));
  }
}

const STATES = {
  ready: "ready",
  starting: "loading the model",
  draining: "shutting down",
  engine_dead: "engine restarting",
  stuck: "stuck",
  gone: "no connection",
};

const STAGES = { grammar: "waiting (grammar)" };

function showState(state) {
  const chip = $("state");
  chip.textContent = STATES[state] ?? state;
  chip.className = `chip ${state === "ready" ? "good" : state === "starting" ? "" : "bad"}`;
  document.body.classList.toggle("gone", state === "gone");
}

function describe(engine) {
  const context = engine.max_model_len.toLocaleString("en");
  return `${engine.model} · ${engine.attention} · ${engine.dtype} on ${engine.device} · context ${context}`;
}

function makeTiles(parent) {
  const tokens = new Tile(parent, { name: "Tokens/s generated", format: number });
  const firstToken = new Tile(parent, { name: "Time to first token", format: duration, dots: true });
  const interToken = new Tile(parent, { name: "Inter-token latency", format: duration, second: true });
  const requests = new Tile(parent, { name: "Requests running", format: (n) => [`${n}`, ""], second: true });
  const pages = new Tile(parent, { name: "Pages in use", format: share, max: 1 });
  const prefix = new Tile(parent, { name: "Prefix-cache hits", format: share, max: 1, dots: true });
  let before = null;
  return {
    add({ time, stats, engine, ...figures }) {
      const itl = figures.inter_token_latency_seconds;
      const used = Math.round(stats.kv_cache_usage * engine.num_pages);
      const computed = Math.round(figures.computed_tokens_per_second).toLocaleString("en");
      tokens.add(time, figures.generation_tokens_per_second, { aside: `computed ${computed}/s` });
      const ttft = figures.time_to_first_token_seconds;
      firstToken.add(time, ttft.p50 ?? null, { aside: ttft.count > 1 ? `of ${ttft.count}` : "" });
      interToken.add(time, itl.p50 ?? null, {
        second: itl.p99 ?? null,
        aside: itl.count ? `p99 ${duration(itl.p99).join(" ")}` : "",
      });
      requests.add(time, stats.num_running ?? 0, {
        second: stats.num_waiting ?? 0,
        aside: `${stats.num_waiting ?? 0} waiting`,
      });
      pages.add(time, stats.kv_cache_usage ?? 0, { aside: `${used || 0} of ${engine.num_pages.toLocaleString("en")}` });
      const queries = stats.prefix_cache_queries ?? 0;
      const hits = stats.prefix_cache_hits ?? 0;
      const asked = before ? queries - before.queries : 0;
      prefix.add(time, asked > 0 ? (hits - before.hits) / asked : null, {
        aside: queries ? `${share(hits / queries).join(" ")} since start` : "",
      });
      before = { queries, hits };
    },
  };
}

function showNothingKnown() {
  if ($("idle").hidden) return; // the requests of a second ago say more
  $("idle").textContent = "Not known: the engine is in a long step.";
  $("counts").textContent = "";
}

function showRequests(requests, stats, onLook) {
  $("idle").hidden = requests.length > 0;
  $("idle").textContent = "None.";
  $("requests").closest("table").hidden = requests.length === 0;
  const preempted = stats.num_preemptions ? ` · ${stats.num_preemptions} preemptions` : "";
  $("counts").textContent = `${requests.length}${preempted}`;
  const focused = document.activeElement?.dataset?.id;
  $("requests").replaceChildren(...requests.map((request) => row(request, onLook)));
  if (focused) $("requests").querySelector(`[data-id="${CSS.escape(focused)}"]`)?.focus();
}

function row(request, onLook) {
  const element = document.createElement("tr");
  const name = document.createElement("code");
  const kind = document.createElement("span");
  kind.className = "extra";
  kind.textContent = request.id.slice(0, request.id.indexOf("-") + 1);
  const rest = request.id.slice(kind.textContent.length, kind.textContent.length + 8);
  name.append(kind, rest + (request.index ? ` #${request.index}` : ""));
  name.title = request.id;
  const stage = document.createElement("span");
  stage.className = `stage ${request.state}`;
  stage.textContent = (STAGES[request.state] ?? request.state) + (request.num_preemptions ? " (preempted)" : "");
  if (request.state === "prefill") {
    const missing = request.num_prompt_tokens + request.num_generated_tokens;
    stage.textContent += ` ${Math.floor((100 * request.num_computed_tokens) / missing)} %`;
  }
  const look = document.createElement("button");
  look.type = "button";
  look.className = "quiet";
  look.textContent = "Look";
  look.dataset.id = request.id;
  look.disabled = request.id.length < FULL_ID || request.index > 0;
  if (look.disabled) look.title = request.index ? "Its first continuation can be looked at" : "Of another key";
  look.addEventListener("click", () => onLook(request.id));
  const cells = [
    [name],
    [stage],
    [request.num_prompt_tokens.toLocaleString("en"), "extra"],
    [request.num_cached_tokens.toLocaleString("en"), "extra"],
    [request.num_generated_tokens.toLocaleString("en")],
    [request.num_pages.toLocaleString("en"), "extra"],
    [`${request.age.toFixed(1)} s`],
    [look],
  ];
  for (const [content, kind = ""] of cells) {
    const cell = element.insertCell();
    cell.className = kind;
    cell.append(content);
  }
  return element;
}

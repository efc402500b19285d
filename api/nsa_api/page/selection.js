// Follows a request while it decodes and shows what its layers select.

import { Heatmap } from "./heatmap.js";
import { json, ServerError } from "./server.js";

const $ = (id) => document.getElementById(id);
const MS_BETWEEN_LOOKS = 1000; // a look costs about one more step of one sequence
const WAITING = "The prompt is being computed; what its last token reads comes with the answer.";
const PIECES = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

export class Selection {
  constructor() {
    this.map = new Heatmap($("heatmap"));
    this.followed = null;
    this.tokens = null;
    this.texts = new Map();
    const canvas = $("heatmap");
    canvas.addEventListener("pointermove", (event) => this.point(this.map.cellAt(event.offsetX, event.offsetY)));
    canvas.addEventListener("keydown", (event) => this.move(event));
    canvas.addEventListener("focus", () => this.map.cell ?? this.point({ layer: 0, block: 0 }));
    $("kv-head").addEventListener("change", (event) => {
      this.map.head = event.target.value === "" ? null : Number(event.target.value);
      this.map.draw();
      this.describe();
    });
  }

  /** A request was sent; its id comes with its first token. */
  wait() {
    if (!this.followed) $("selection-summary").textContent = WAITING;
  }

  /** It ended before its first token. */
  stopWaiting() {
    const summary = $("selection-summary");
    if (summary.textContent === WAITING) summary.textContent = "Nothing is being generated.";
  }

  /** Show this request until it ends or another is followed. `tokens`: its token ids, where they
      are known, to say what a block holds. */
  async follow(id, tokens) {
    const turn = (this.followed = { id });
    this.tokens = tokens;
    this.texts.clear();
    let seen = 0;
    $("selection-summary").textContent = "Waiting for a decode step.";
    while (this.followed === turn) {
      try {
        const look = await json(`/v1/live/requests/${encodeURIComponent(id)}/selection`);
        if (this.followed !== turn) return;
        if (look.available) {
          seen += 1;
          this.show(look);
        } else {
          $("selection-summary").textContent = `Not available: ${look.reason}.`;
          if (!look.reason.startsWith("no decode step")) return;
        }
      } catch (error) {
        if (error instanceof ServerError && error.status === 404) break;
        if (!(error instanceof ServerError && error.status === 429)) return;
      }
      do {
        await new Promise((resolve) => setTimeout(resolve, MS_BETWEEN_LOOKS));
      } while (document.hidden && this.followed === turn);
    }
    if (this.followed !== turn) return;
    this.followed = null;
    const summary = $("selection-summary");
    summary.textContent = seen
      ? `${summary.textContent} The request has ended.`
      : "The request ended before a look was taken.";
  }

  show(look) {
    $("pictures").hidden = false;
    $("kv-head-field").hidden = false;
    const heads = look.layers.find((layer) => layer.selected_block_ids)?.selected_block_ids.length ?? 0;
    const select = $("kv-head");
    if (select.options.length !== heads + 1) {
      const options = Array.from({ length: heads }, (_, head) => new Option(`${head}`, `${head}`));
      select.replaceChildren(new Option("all", ""), ...options);
      this.map.head = null;
    }
    const { cell } = this.map;
    if (cell && (cell.layer >= look.layers.length || cell.block >= look.num_blocks)) this.map.cell = null;
    this.map.show(look);
    $("window-key").hidden = !this.map.hasWindow;
    $("selection-summary").textContent = summaryOf(look);
    this.describe();
  }

  point(cell) {
    if (!this.map.look) return;
    this.map.cell = cell;
    this.map.draw();
    this.describe();
  }

  move(event) {
    const step = PIECES[event.key];
    if (!step || !this.map.look) return;
    event.preventDefault();
    const { layer, block } = this.map.cell ?? { layer: 0, block: 0 };
    const clamp = (value, count) => Math.max(0, Math.min(count - 1, value));
    const { layers, num_blocks: blocks } = this.map.look;
    this.point({ layer: clamp(layer + step[0], layers.length), block: clamp(block + step[1], blocks) });
  }

  /** The line under the picture. */
  describe() {
    const { look, cell } = this.map;
    const line = $("cell");
    if (!look || !cell) {
      line.textContent = "Point at a cell, or use the arrow keys, to read what it stands for.";
      return;
    }
    const layer = look.layers[cell.layer];
    const size = look.select_block;
    const first = cell.block * size;
    const last = Math.min(first + size - 1, look.position);
    const gates = this.map.gatesOf(layer);
    const weights = gates
      ? ` Gates: compressed ${gates[0].toFixed(2)}, selected ${gates[1].toFixed(2)}, window ${gates[2].toFixed(2)}.`
      : "";
    line.textContent = `Layer ${cell.layer}, block ${cell.block} (tokens ${first}–${last}): ${this.readBy(layer, cell.block)}.${weights} `;
    this.quote(cell.block, first, last, line);
  }

  readBy(layer, block) {
    if (layer.attention === "dense") return "read, the layer is dense";
    if (!layer.sets) return "this layer selects no blocks";
    if (this.map.look.forced.has(block)) return "always read";
    const heads = layer.sets.flatMap((set, head) => (set.has(block) ? [head] : []));
    if (heads.length === 0) return "not read";
    if (heads.length === layer.sets.length) return "chosen by every kv head";
    return `chosen by kv head${heads.length > 1 ? "s" : ""} ${heads.join(", ")}`;
  }

  /** Adds the text of a block, where the page knows its tokens. */
  async quote(block, first, last, line) {
    if (!this.tokens || last >= this.tokens.length) return;
    const before = line.textContent;
    const whole = last - first + 1 === this.map.look.select_block;
    if (!this.texts.has(block) || !whole) {
      const asked = json("/detokenize", { tokens: this.tokens.slice(first, last + 1) });
      this.texts.set(block, asked.then((answer) => answer.prompt, () => ""));
    }
    const text = await this.texts.get(block);
    if (text && line.textContent === before) {
      line.append(Object.assign(document.createElement("q"), { textContent: text.replace(/\s+/g, " ").trim() }));
    }
  }
}

/** "The query at token 1,312 reads 16 of 21 blocks …" */
function summaryOf(look) {
  const counts = look.layers.flatMap((layer) => (layer.selected_block_ids ?? []).map((ids) => ids.length));
  const at = `The query at token ${look.position.toLocaleString("en")}`;
  if (!counts.length) return `${at} uses no selected branch.`;
  const most = Math.max(...counts);
  const of = `of ${look.num_blocks} block${look.num_blocks === 1 ? "" : "s"} of ${look.select_block} tokens`;
  if (most >= look.num_blocks) return `${at} reads all ${look.num_blocks === 1 ? "of the 1 block" : `${look.num_blocks} blocks`} of ${look.select_block} tokens: the context is no longer than what is selected.`;
  return `${at} reads ${most} ${of} in each layer, ${Math.round((100 * most) / look.num_blocks)} % of the context.`;
}

// Draws what the layers select: a row for each layer, a column for each block of the context, and
// beside each row the mean gates of the three branches.

const LEFT = 30;
const TOP = 4;
const GATES = 116;
const GAP = 14;
const BOTTOM = 34;

/** Colours of the page's theme. */
function palette() {
  const style = getComputedStyle(document.documentElement);
  const of = (name) => style.getPropertyValue(`--${name}`).trim();
  const names = ["ink", "soft", "unread", "forced", "chosen", "window", "g0", "g1", "g2", "main"];
  return Object.fromEntries(names.map((name) => [name, of(name)]));
}

/** The picture of one look; `cell` is {layer, block} that is pointed at, or null. */
export class Heatmap {
  constructor(canvas) {
    this.canvas = canvas;
    this.look = null;
    this.head = null;
    this.cell = null;
    new ResizeObserver(() => this.draw()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  /** Share of the kv heads (or of the one that is shown) that read a block in a layer. */
  shareOf(layer, block) {
    const heads = this.headsOf(layer);
    if (!heads) return layer.attention === "dense" ? 1 : 0;
    return heads.filter((set) => set.has(block)).length / heads.length;
  }

  headsOf(layer) {
    if (!layer.sets) return null;
    return this.head === null ? layer.sets : [layer.sets[this.head]];
  }

  gatesOf(layer) {
    if (!layer.gates) return null;
    const rows = this.head === null ? layer.gates : [layer.gates[this.head]];
    return [0, 1, 2].map((i) => rows.reduce((sum, row) => sum + row[i], 0) / rows.length);
  }

  show(look) {
    this.look = {
      ...look,
      forced: new Set(look.forced_block_ids),
      layers: look.layers.map((layer) => ({
        ...layer,
        sets: layer.selected_block_ids?.map((ids) => new Set(ids)),
      })),
    };
    this.draw();
  }

  /** Whether any layer weighs its window. */
  get hasWindow() {
    return this.look.layers.some((layer) => layer.gates?.some((gates) => gates[2] !== 0));
  }

  get geometry() {
    const width = this.canvas.clientWidth;
    const layers = this.look.layers.length;
    const rowHeight = Math.max(7, Math.min(18, Math.floor(330 / layers)));
    const gates = width < 420 ? 76 : GATES;
    const inner = Math.max(40, width - LEFT - gates - GAP);
    return { width, rowHeight, inner, gates, layers, height: TOP + layers * rowHeight + BOTTOM };
  }

  /** The cell under a point of the canvas, or null. */
  cellAt(x, y) {
    if (!this.look) return null;
    const { rowHeight, inner, layers } = this.geometry;
    const layer = Math.floor((y - TOP) / rowHeight);
    const block = Math.floor(((x - LEFT) / inner) * this.look.num_blocks);
    const outside = layer < 0 || layer >= layers || block < 0 || block >= this.look.num_blocks;
    return outside ? null : { layer, block };
  }

  draw() {
    if (!this.look || !this.canvas.clientWidth) return;
    const shape = this.geometry;
    const ratio = window.devicePixelRatio || 1;
    this.canvas.style.height = `${shape.height}px`;
    this.canvas.width = Math.round(shape.width * ratio);
    this.canvas.height = Math.round(shape.height * ratio);
    const context = this.canvas.getContext("2d");
    context.scale(ratio, ratio);
    context.clearRect(0, 0, shape.width, shape.height);
    context.font = "12px system-ui, sans-serif";
    const colors = palette();
    this.drawBlocks(context, shape, colors);
    this.drawGates(context, shape, colors);
    this.drawAxes(context, shape, colors);
    this.drawCell(context, shape, colors);
  }

  drawBlocks(context, { inner, rowHeight }, colors) {
    const { layers, num_blocks: blocks, forced } = this.look;
    const step = inner / blocks;
    const gap = step >= 6 ? 1 : 0;
    layers.forEach((layer, row) => {
      for (let block = 0; block < blocks; block++) {
        const share = this.shareOf(layer, block);
        const left = LEFT + block * step;
        const right = LEFT + (block + 1) * step - gap;
        context.globalAlpha = 1;
        context.fillStyle = colors.unread;
        context.fillRect(left, TOP + row * rowHeight, right - left, rowHeight - 1);
        if (share > 0) {
          context.globalAlpha = 0.2 + 0.8 * share;
          context.fillStyle = forced.has(block) && layer.sets ? colors.forced : colors.chosen;
          context.fillRect(left, TOP + row * rowHeight, right - left, rowHeight - 1);
        }
      }
    });
    context.globalAlpha = 1;
  }

  drawGates(context, { width, gates, rowHeight }, colors) {
    const left = width - gates;
    const thick = (rowHeight - 1) / 3;
    this.look.layers.forEach((layer, row) => {
      const top = TOP + row * rowHeight;
      context.fillStyle = colors.unread;
      context.fillRect(left, top, gates, rowHeight - 1);
      (this.gatesOf(layer) ?? []).forEach((gate, i) => {
        context.fillStyle = colors[`g${i}`];
        context.fillRect(left, top + i * thick, gates * Math.max(0, Math.min(1, gate)), thick);
      });
    });
  }

  drawAxes(context, { width, inner, gates, rowHeight, layers }, colors) {
    const { num_blocks: blocks, select_block: size, position, window: keys } = this.look;
    const bottom = TOP + layers * rowHeight;
    context.fillStyle = colors.soft;
    context.textBaseline = "middle";
    context.textAlign = "right";
    const every = layers > 12 ? 5 : layers > 6 ? 2 : 1;
    for (let layer = 0; layer < layers; layer += every) {
      context.fillText(`${layer}`, LEFT - 6, TOP + (layer + 0.5) * rowHeight);
    }
    const x = (token) => LEFT + (inner * token) / (blocks * size);
    if (this.hasWindow) {
      const first = x(Math.max(0, position + 1 - keys));
      context.fillStyle = colors.window;
      context.fillRect(first, bottom + 2, x(position + 1) - first, 4);
    }
    context.fillStyle = colors.soft;
    context.textBaseline = "top";
    const tick = niceStep((blocks * size * 64) / inner);
    const last = `token ${position.toLocaleString("en")}`;
    const room = LEFT + inner - context.measureText(last).width - 12;
    for (let token = 0; x(token) < room; token += tick) {
      const text = token.toLocaleString("en");
      if (token && x(token) + context.measureText(text).width / 2 > room) break;
      context.textAlign = token ? "center" : "left";
      context.fillText(text, x(token), bottom + 12);
    }
    context.textAlign = "right";
    context.fillText(last, LEFT + inner, bottom + 12);
    context.textAlign = "left";
    context.fillText("0", width - gates, bottom + 12);
    context.textAlign = "right";
    context.fillText("1", width, bottom + 12);
    context.textAlign = "center";
    context.fillText("gates", width - gates / 2, bottom + 12);
  }

  drawCell(context, { inner, rowHeight }, colors) {
    if (!this.cell) return;
    const step = inner / this.look.num_blocks;
    context.strokeStyle = colors.ink;
    context.lineWidth = 2;
    const { layer, block } = this.cell;
    context.strokeRect(LEFT + block * step, TOP + layer * rowHeight, Math.max(step - 1, 3), rowHeight - 1);
  }
}

/** The least of 1, 2, 5, 10, … that is no smaller. */
function niceStep(least) {
  const power = 10 ** Math.floor(Math.log10(least));
  return [1, 2, 5, 10].map((digit) => digit * power).find((step) => step >= least);
}

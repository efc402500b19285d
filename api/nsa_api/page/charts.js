// Small charts of the last two minutes, drawn as SVG.

const SECONDS = 120;
const SECONDS_OF_A_GAP = 3; // a sample comes every second, unless nobody could take it
const WIDTH = 240;
const HEIGHT = 44;
const RIGHT = 5; // room for half of the latest dot
const NS = "http://www.w3.org/2000/svg";

/** A tile: a name, the latest value, and a line of its last two minutes; perhaps a second line. */
export class Tile {
  /** `format(value)` → [text, unit]; `max` fixes the top of the scale; `dots`: samples are events,
      each drawn by itself. */
  constructor(parent, { name, format, max = null, second = false, dots = false }) {
    this.samples = [];
    this.format = format;
    this.max = max;
    this.dots = dots;
    this.element = document.createElement("div");
    this.element.className = "tile";
    this.element.innerHTML = '<div class="name"></div><div class="value"><b></b><span></span></div>';
    this.label = this.element.querySelector(".name").textContent = name;
    this.value = this.element.querySelector("b");
    this.aside = this.element.querySelector("span");
    this.svg = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" });
    if (dots) this.svg.classList.add("dots");
    this.area = this.svg.appendChild(svg("path", { class: "area" }));
    this.line = this.svg.appendChild(svg("path", { class: "line" }));
    this.other = second ? this.svg.appendChild(svg("path", { class: "line second" })) : null;
    this.at = this.svg.appendChild(svg("path", { class: "at" }));
    this.element.append(this.svg);
    parent.append(this.element);
    this.pointed = null;
    this.svg.addEventListener("pointermove", (event) => this.point(event));
    this.svg.addEventListener("pointerleave", () => this.point(null));
    this.draw();
  }

  /** A sample at `time` seconds; a value of null is a gap. */
  add(time, value, { second = null, aside = "" } = {}) {
    this.samples.push({ time, value, second });
    while (this.samples[0].time < time - SECONDS) this.samples.shift();
    this.note = aside;
    this.draw();
  }

  point(event) {
    this.pointed = null;
    if (event && this.samples.length) {
      const box = this.svg.getBoundingClientRect();
      const at = (WIDTH * (event.clientX - box.left)) / box.width;
      const back = SECONDS * (1 - at / (WIDTH - RIGHT));
      const wanted = this.samples.at(-1).time - back;
      this.pointed = this.samples.reduce((a, b) =>
        Math.abs(b.time - wanted) < Math.abs(a.time - wanted) ? b : a,
      );
    }
    this.draw();
  }

  draw() {
    const latest = this.samples.at(-1);
    const shown = this.pointed ?? latest;
    // While nothing happens, what happened last still tells more than a dash.
    const before = this.samples.findLast((sample) => sample.value !== null);
    const known = shown?.value ?? (this.pointed ? null : (before?.value ?? null));
    const [text, unit] = known === null ? ["–", ""] : this.format(known);
    this.value.replaceChildren(text, Object.assign(document.createElement("small"), { textContent: unit }));
    const back = this.pointed ? Math.round(latest.time - this.pointed.time) : 0;
    this.aside.textContent = back ? `${back} s ago` : (this.note ?? "");
    this.svg.setAttribute("aria-label", `${this.label}: ${text} ${unit}`.trim());
    if (!latest) return;
    const top = this.max ?? 1.15 * Math.max(1e-9, ...this.samples.map((s) => Math.max(s.value ?? 0, s.second ?? 0)));
    const x = (time) => ((WIDTH - RIGHT) * (time - latest.time + SECONDS)) / SECONDS;
    const y = (value) => HEIGHT - 2 - (HEIGHT - 4) * Math.min(1, value / top);
    const runs = runsOf(this.samples, "value", this.dots);
    this.line.setAttribute("d", runs.map((run) => path(run, x, y)).join(""));
    const filled = runs.filter((run) => run.length > 1);
    this.area.setAttribute(
      "d",
      filled.map((run) => `${path(run, x, y)}V${HEIGHT}H${x(run[0][0]).toFixed(1)}Z`).join(""),
    );
    this.other?.setAttribute("d", runsOf(this.samples, "second").map((run) => path(run, x, y)).join(""));
    this.at.setAttribute("d", this.pointed ? `M${x(this.pointed.time).toFixed(1)} 0V${HEIGHT}` : "");
  }
}

function svg(name, attributes) {
  const element = document.createElementNS(NS, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

/** Runs of samples without gaps, as [time, value]. */
function runsOf(samples, field, apart = false) {
  const runs = [];
  let open = false;
  let before = 0;
  for (const sample of samples) {
    const value = sample[field];
    if (sample.time - before > SECONDS_OF_A_GAP) open = false;
    before = sample.time;
    if (value === null) {
      open = false;
    } else {
      if (!open || apart) runs.push([]);
      open = true;
      runs.at(-1).push([sample.time, value]);
    }
  }
  return runs;
}

function path(run, x, y) {
  const points = run.map(([time, value]) => `${x(time).toFixed(1)} ${y(value).toFixed(1)}`);
  // A sample between two gaps is a dot.
  return points.length === 1 ? `M${points[0]}h.01` : `M${points.join("L")}`;
}

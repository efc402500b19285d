"""Fill docs/gpu.md with tables, and docs/images with figures, from benchmarks/results/gpu-*.json.

    .venv/bin/python -m benchmarks.gpu_plots

`gpu-kernels*.json` are written by `nsa-serve bench kernels`, `gpu-engine*.json` by `nsa-serve bench
latency` and `throughput`. The page's own text stands outside the marked parts and is kept.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.gpu_tables import (
    ENGINE_FIGURE,
    LIBRARIES,
    dense_names,
    engine_part,
    figure_name,
    filled,
    kernel_part,
    length,
)
from nsa_serve.bench.results import (
    EngineReport,
    KernelReport,
    Layer,
    Point,
    read_engine_report,
    read_kernel_report,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PAGE = HERE.parent / "docs" / "gpu.md"
IMAGES = HERE.parent / "docs" / "images"


class Style(NamedTuple):
    """How a line is drawn."""

    label: str
    color: str
    dashes: str
    width: float


NSA = Style("NSA", "#d62728", "-", 2.4)
ALIKE = Style("NSA, neighbouring queries alike", "#d62728", ":", 2.0)
FLOOR = Style("NSA at the machine's limit", "#d62728", "--", 1.0)
DENSE_FLOOR = Style("dense at the machine's limit", "#555555", "--", 1.0)
_DENSE_LOOKS = {"fa3": ("#222222", 2.0), "triton": ("#1f77b4", 1.4),
                "xformers": ("#2ca02c", 1.4), "sdpa": ("#999999", 1.4)}  # fmt: skip
DENSE = {
    name: Style(f"dense: {LIBRARIES[name]}", color, "-", width)
    for name, (color, width) in _DENSE_LOOKS.items()
}


def main() -> None:
    """Read everything, rewrite the page, draw."""
    kernels = [read_kernel_report(path) for path in sorted(RESULTS.glob("gpu-kernels*.json"))]
    engines = [read_engine_report(path) for path in sorted(RESULTS.glob("gpu-engine*.json"))]
    parts = {"kernels": kernel_part(kernels), "engine": engine_part(engines)}
    PAGE.write_text(filled(PAGE.read_text(), parts))
    if kernels or engines:
        draw(kernels, engines, IMAGES)


def draw(
    kernels: Sequence[KernelReport], engines: Sequence[EngineReport], folder: Path
) -> list[Path]:
    """Figures of whatever was measured; their paths."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    plt.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
    figures: dict[str, Figure] = {}
    for layer in [layer for report in kernels for layer in report.layers]:
        if layer.decode:
            figures[figure_name("decode", layer)] = draw_decode(layer)
        if layer.prefill:
            figures[figure_name("prefill", layer)] = draw_prefill(layer)
    if any(report.latency for report in engines):
        figures[ENGINE_FIGURE] = draw_steps(engines)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, figure in figures.items():
        paths.append(folder / f"{name}.png")
        figure.savefig(paths[-1], dpi=110, bbox_inches="tight")
        plt.close(figure)
    return paths


def draw_decode(layer: Layer) -> "Figure":
    """Time by context, a panel for each batch."""
    from matplotlib import pyplot as plt

    batches = sorted({p.batch for p in layer.decode})
    figure, panels = plt.subplots(
        1, len(batches), figsize=(4.4 * len(batches), 4.2), sharey=True, squeeze=False
    )
    for axes, batch in zip(panels[0], batches, strict=True):
        points = [p for p in layer.decode if p.batch == batch]
        _lines(axes, points, 1.0)
        axes.set(title=f"batch {batch}", xlabel="context, tokens")
        found = next((c for c in layer.crossovers if c.batch == batch), None)
        if found is not None and found.context is not None:
            axes.axvspan(points[0].context, found.context, color="#000000", alpha=0.06, linewidth=0)
            axes.text(points[0].context, 0.98, " dense is faster", va="top", fontsize=8,
                      transform=axes.get_xaxis_transform())  # fmt: skip
    panels[0][0].set_ylabel("µs, one layer")
    _legend(figure, panels[0][0])
    figure.suptitle(f"One decode step of one attention layer, heads {layer.heads}", y=1.04)
    return figure


def draw_prefill(layer: Layer) -> "Figure":
    """Time by prompt length."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 4.2))
    _lines(axes, layer.prefill, 1e3)
    axes.set(xlabel="prompt, tokens", ylabel="ms, one layer")
    axes.set_title(f"Prefill of one attention layer, heads {layer.heads}")
    _legend(figure, axes)
    return figure


def draw_steps(reports: Sequence[EngineReport]) -> "Figure":
    """A decode step of whole models by context: NSA in full lines, dense in grey."""
    from matplotlib import pyplot as plt

    models = sorted({report.model for report in reports if report.latency})
    figure, panels = plt.subplots(1, len(models), figsize=(5.4 * len(models), 4.2), squeeze=False)
    for axes, model in zip(panels[0], models, strict=True):
        for report in reports:
            if report.model == model:
                _steps(axes, report)
        axes.set(title=model, xlabel="context, tokens", ylabel="ms, one decode step")
        _logarithmic(axes)
        axes.set(yscale="linear", ylim=(0, None))
        axes.legend(
            frameon=False, fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.15)
        )
    return figure


def _steps(axes: "Axes", report: EngineReport) -> None:
    color = NSA.color if report.attention == "nsa" else "#555555"
    markers = dict(zip(sorted({p.batch for p in report.latency}), "os^vDP", strict=False))
    for batch, marker in markers.items():
        places = [(p.input_len, p.step.p50) for p in report.latency if p.batch == batch and p.step]
        if places:
            label = f"{report.attention}, batch {batch}"
            axes.plot(*zip(*sorted(places), strict=True), color=color, marker=marker, label=label)


def _lines(axes: "Axes", points: Sequence[Point], unit: float) -> None:
    """Every side over the context."""
    for name in dense_names(points):
        _line(axes, [(p.context, p.dense[name].us) for p in points if name in p.dense], unit,
              DENSE[name])  # fmt: skip
    _line(axes, [(p.context, p.dense_floor_us) for p in points], unit, DENSE_FLOOR)
    _line(axes, [(p.context, p.floor_us) for p in points], unit, FLOOR)
    _line(axes, [(p.context, p.neighbours.us) for p in points if p.neighbours], unit, ALIKE)
    _line(axes, [(p.context, p.nsa.us) for p in points], unit, NSA)
    _logarithmic(axes)


def _line(
    axes: "Axes", places: Iterable[tuple[int, float | None]], unit: float, style: Style
) -> None:
    there = [(context, us / unit) for context, us in places if us is not None]
    if there:
        marker = "o" if style.dashes == "-" else ""
        axes.plot(*zip(*sorted(there), strict=True), style.dashes, color=style.color, marker=marker,
                  linewidth=style.width, markersize=4, label=style.label)  # fmt: skip


def _logarithmic(axes: "Axes") -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: length(round(value)))
    axes.grid(which="major", color="#dddddd", linewidth=0.6)


def _legend(figure: "Figure", axes: "Axes") -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, loc="upper center", ncols=3, fontsize=8,
                  bbox_to_anchor=(0.5, 0.0))  # fmt: skip


if __name__ == "__main__":
    main()

"""Draw docs/images/built-in.png from the JSON in benchmarks/results and from `plan`'s arithmetic.

.venv/bin/python benchmarks/plots.py
"""

import json
from pathlib import Path

import matplotlib
import numpy as np

from nsa_serve.engine.plan import step_reads
from nsa_serve.model.loading.folder import resolve_model
from nsa_serve.model.loading.weights import attention_config

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

HERE = Path(__file__).parent
TARGET = HERE.parent / "docs" / "images" / "built-in.png"


def main() -> None:
    """Three panels: what a step reads, what selection costs in quality, speed on a CPU."""
    plt.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
    figure, (reads, quality, speed) = plt.subplots(1, 3, figsize=(13, 3.8))
    draw_reads(reads)
    draw_quality(quality)
    draw_speed(speed)
    figure.tight_layout()
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(TARGET, dpi=110)


def draw_reads(axes: Axes) -> None:
    """Cache bytes of one decode step."""
    nsa = resolve_model(None).config
    dense = attention_config(nsa, "dense")
    contexts = list(range(256, 8193, 256))
    for config, label, color in ((dense, "dense", "#888888"), (nsa, "NSA", "#1f77b4")):
        read = [step_reads(config, "bfloat16", context).total / 2**20 for context in contexts]
        axes.plot(contexts, read, color=color, label=label)
    axes.set(title="cache read by a decode step, MiB", xlabel="context, tokens")
    axes.legend(frameon=False)


def draw_quality(axes: Axes) -> None:
    """Perplexity by place in the text."""
    result = json.loads((HERE / "results" / "perplexity.json").read_text())["perplexity"]
    names = [name for name in result["nsa int8"] if name != "all"]
    places = np.arange(len(names))
    for i, side in enumerate(("dense float32", "nsa float32", "nsa int8")):
        axes.bar(places + (i - 1) * 0.27, [result[side][n] for n in names], 0.25, label=side,
                 color=["#bbbbbb", "#7fb3d5", "#1f77b4"][i])  # fmt: skip
    axes.set(title="perplexity on Moby-Dick")
    axes.set_xticks(places, [name.replace("tokens ", "") for name in names])
    axes.legend(frameon=False)


def draw_speed(axes: Axes) -> None:
    """Tokens per second beside transformers."""
    medians = json.loads((HERE / "results" / "cpu.json").read_text())["medians"]
    keys = {"decode_batch_1": "decode ×1", "decode_batch_8": "decode ×8", "prefill_512": "prefill"}
    best = {key: max(medians[f"transformers {t}"][key] for t in ("bfloat16", "float32"))
            for key in keys}  # fmt: skip
    places = np.arange(len(keys))
    sides = {
        "nsa-serve int8": medians["nsa-serve int8"],
        "nsa-serve bfloat16": medians["nsa-serve bfloat16"],
    }
    for i, (label, values) in enumerate(sides.items()):
        axes.bar(places + (i - 0.5) * 0.36, [values[k] / best[k] for k in keys], 0.33, label=label,
                 color=["#1f77b4", "#7fb3d5"][i])  # fmt: skip
    axes.axhline(1.0, color="#888888", linewidth=1)
    axes.set(title="tokens/s ÷ transformers, 2 CPU cores")
    axes.set_xticks(places, list(keys.values()))
    axes.legend(frameon=False)


if __name__ == "__main__":
    main()

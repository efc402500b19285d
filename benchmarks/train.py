"""Train the sequence task and a small model of every family on text; write results and a picture.

.venv/bin/python benchmarks/train.py [FOLDER]

Models go to FOLDER and stay there; those that are done are not trained again. Writes
results/train.json and docs/images/train.png, from the runs' own logs. About a quarter of an hour on
two cores.
"""

import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import matplotlib
import torch

from nsa_serve import LLM, SamplingParams
from nsa_serve.presets import PRESETS
from nsa_serve.train.checkpoint import LOG, SavedRun
from nsa_serve.train.log import read_log
from nsa_serve.train.sequences import Sequences

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

HERE = Path(__file__).parent
TEXT = HERE / "data" / "moby_dick.txt"
RESULT = HERE / "results" / "train.json"
PICTURE = HERE.parent / "docs" / "images" / "train.png"
COMMAND = Path(sys.executable).with_name("nsa-serve")
GIVEN = (2, 3, 4, 6, 8)
TEXT_ARGUMENTS = ["--data", str(TEXT), "--small", "--steps", "100", "--batch-size", "4",
                  "--evaluate-every", "10"]  # fmt: skip
Lines = list[dict[str, Any]]


def main() -> None:
    """Train what is not there yet, measure, draw."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="nsa-train-"))
    logs = {"sequence": trained(folder / "sequence", ["--task", "sequence"])}
    for name in PRESETS:
        logs[name] = trained(folder / name, [*TEXT_ARGUMENTS, "--preset", name])
    result = {
        "threads": torch.get_num_threads(),
        "sequence": {
            "processor_seconds": int(cost_path(folder / "sequence").read_text()),
            "epoch_losses": values(logs["sequence"], "epoch_loss")[1],
            "right_of_50": right_by_digits_given(folder / "sequence"),
        },
        "text": {name: text_figures(folder / name, logs[name]) for name in PRESETS},
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    draw(logs)
    print(RESULT.read_text())


def trained(folder: Path, arguments: list[str]) -> Lines:
    """The log of a run in a folder, which is trained unless it is done."""
    if not cost_path(folder).exists():
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [str(COMMAND), "train", str(folder), "--device", "cpu", *arguments]
        subprocess.run(command, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cost_path(folder).write_text(f"{after.ru_utime - before.ru_utime:.0f}")
    return read_log(folder / LOG)


def cost_path(folder: Path) -> Path:
    """Where the seconds of processor time are kept that a run took."""
    return folder / "training" / "processor_seconds"


def right_by_digits_given(folder: Path) -> dict[int, int]:
    """How many of the held-out sequences are continued to the end, by digits of the prompt."""
    texts = Sequences(SavedRun(folder).about.settings).held_out_texts
    llm = LLM(str(folder), device="cpu")
    right = {}
    for given in GIVEN:
        params = SamplingParams(temperature=0.0, max_tokens=len(texts[0]) - given)
        outputs = llm.generate([text[:given] for text in texts], params, use_tqdm=False)
        pairs = zip(outputs, texts, strict=True)
        right[given] = sum(output.outputs[0].text == text[given:] for output, text in pairs)
    return right


def text_figures(folder: Path, log: Lines) -> dict[str, float]:
    """Losses in nats a byte, and the time."""
    return {
        "processor_seconds": int(cost_path(folder).read_text()),
        "loss": values(log, "loss")[1][-1],
        "validation_loss": values(log, "validation_loss")[1][-1],
    }


def values(log: Lines, name: str) -> tuple[list[int], list[float]]:
    """Steps and values of the lines that have one."""
    lines = [line for line in log if name in line]
    return [line["step"] for line in lines], [line[name] for line in lines]


def draw(logs: dict[str, Lines]) -> None:
    """Two panels: the sequence task, every family on text."""
    plt.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
    figure, (sequence, text) = plt.subplots(1, 2, figsize=(11, 4))
    draw_sequence(sequence, logs["sequence"])
    for name in PRESETS:
        text.plot(*values(logs[name], "validation_loss"), label=name, linewidth=1.2)
    text.set(title="Moby-Dick, held-out loss in nats a byte", xlabel="step")
    text.legend(frameon=False, ncols=2, fontsize=8)
    figure.tight_layout()
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURE, dpi=110)


def draw_sequence(axes: Axes, log: Lines) -> None:
    """Loss by step, and the bar of the original."""
    axes.plot(*values(log, "loss"), color="#1f77b4", label="training loss")
    axes.axhline(0.33, color="#888888", linestyle="--", linewidth=1, label="the original's, 0.33")
    axes.set(title="sequence task, preset devin: loss", xlabel="step", yscale="log")
    axes.legend(frameon=False)


if __name__ == "__main__":
    main()

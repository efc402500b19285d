"""The sequence task, trained by the command and continued by the completion endpoint."""

import resource
import subprocess
from pathlib import Path

import pytest
import torch

from nsa_serve.preset import changed
from nsa_serve.presets import PRESETS
from nsa_serve.train.checkpoint import LOG, SavedRun
from nsa_serve.train.log import read_log
from nsa_serve.train.sequences import Sequences
from tests.support.command_line import COMMAND
from tests.support.http_server import run_server
from tests.support.training import tiny_settings, train

GIVEN = 8
"""Digits of a prompt. Of the pairs that end before them the model saw half at each place."""
ORIGINAL_LOSS = 0.33
SECONDS = 120.0


def continued_right(folder: Path, texts: list[str], given: int) -> int:
    """How many texts the completion endpoint continues, from `given` digits, to the end."""
    engine = {"runner": "model", "model": str(folder), "device": "cpu", "num_threads": 1}
    with run_server(engine=engine) as server:
        body = {
            "model": folder.name,
            "prompt": [text[:given] for text in texts],
            "max_tokens": len(texts[0]) - given,
            "temperature": 0,
        }
        answer = server.http.post("/v1/completions", json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    choices = sorted(answer.json()["choices"], key=lambda choice: choice["index"])
    return sum(choice["text"] == text[given:] for choice, text in zip(choices, texts, strict=True))


def test_what_a_short_run_learned_is_what_its_server_says(tmp_path: Path) -> None:
    small = changed(PRESETS["devin"].small_config, {"vocab_size": 10})
    settings = tiny_settings(
        tmp_path, "sequence", model=small, steps=12, batch_size=32, dropout=0.0
    )
    trainer = train(tmp_path / "digits", settings)
    task = Sequences(settings)
    trainer.model.eval()
    prompts, given = torch.tensor([list(map(int, t)) for t in task.held_out_texts]), 12
    tokens = prompts[:, :given]
    while tokens.shape[1] < prompts.shape[1]:
        with torch.no_grad():
            tokens = torch.cat([tokens, trainer.model(tokens)[:, -1:].argmax(-1)], 1)
    texts = ["".join(map(str, row)) for row in tokens.tolist()]
    assert len({text[given:] for text in texts}) > 1
    assert continued_right(tmp_path / "digits", texts, given) == 50


@pytest.mark.slow
def test_the_devin_preset_learns_the_rule(tmp_path: Path) -> None:
    folder = tmp_path / "digits"
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    arguments = ["--task", "sequence", "--preset", "devin", "--epochs", "10", "--num-threads", "1"]
    command = [COMMAND, "train", str(folder), *arguments, "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # time of the processor, of one thread: it is no less on a machine that does nothing else
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < SECONDS
    about = SavedRun(folder).about
    assert about.settings.model == PRESETS["devin"].config
    epochs = [line["epoch_loss"] for line in read_log(folder / LOG) if "epoch_loss" in line]
    assert len(epochs) == 10
    assert epochs[-1] < ORIGINAL_LOSS
    task = Sequences(about.settings)
    assert continued_right(folder, task.held_out_texts, GIVEN) == 50

"""`nsa-serve train` as a user runs it."""

import signal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from torch import Tensor

from nsa_serve.cli import train as command
from nsa_serve.presets import PRESETS
from nsa_serve.train.checkpoint import LOG, STATE, SavedRun
from nsa_serve.train.log import read_log
from nsa_serve.train.settings import TrainSettings
from nsa_serve.train.text import Text
from tests.support.command_line import run_here

TINY = [
    "--small", "--set", "hidden_size=16", "--set", "num_heads=2", "--set", "head_dim=8",
    "--set", "intermediate_size=16", "--device", "cpu",
]  # fmt: skip


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_bytes(b"Each number is the sum of the two before it. " * 30)
    return path


def settings_of(*arguments: str, monkeypatch: pytest.MonkeyPatch) -> TrainSettings:
    """What a command line asks for, without training it."""
    asked: list[Any] = []
    monkeypatch.setattr(command, "_run", lambda _, settings, *__: asked.append(settings))
    assert run_here("train", "folder", *arguments) == 0
    (settings,) = asked
    assert isinstance(settings, TrainSettings)
    return settings


def test_it_trains_logs_and_says_how_to_serve(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    arguments = ["--data", str(text), "--preset", "xunhao", "--steps", "4", "--batch-size", "2"]
    sizes = ["--set", "num_kv_heads=1", "--sequence-length", "32", "--log-every", "2"]
    assert run_here("train", str(folder), *arguments, *TINY, *sizes) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("step 2/4  loss ")
    assert ", on held-out data " in err
    assert err.endswith(f"serve it: nsa-serve serve {folder}\n")
    assert [line["step"] for line in read_log(folder / LOG) if "loss" in line] == [2, 4]
    assert {path.name for path in folder.iterdir()} == {
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
        "generation_config.json", "training",
    }  # fmt: skip
    assert run_here("train", str(folder), "--resume") == 1
    assert capsys.readouterr().err == f"error: {folder}: all 4 steps are done\n"


def test_defaults_are_those_of_the_preset(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    devin, edifice = PRESETS["devin"], PRESETS["edifice"]
    sequence = settings_of(monkeypatch=monkeypatch)
    assert (sequence.task, sequence.model) == ("sequence", devin.config)
    assert sequence.learning_rate == devin.recommended_defaults.learning_rate
    assert sequence.steps == 10 * -(-1000 // devin.recommended_defaults.batch_size)
    written = settings_of("--data", str(text), monkeypatch=monkeypatch)
    assert (written.task, written.model) == ("text", PRESETS["paper"].small_config)
    assert written.data == (str(text),)
    chosen = settings_of(
        "--data", str(text), "--preset", "edifice", "--set", "nsa.window=7", "--dropout", "0",
        monkeypatch=monkeypatch,
    )  # fmt: skip
    assert chosen.dropout == 0.0 != edifice.recommended_defaults.dropout
    nsa = chosen.model.nsa
    assert nsa is not None
    assert nsa.window == 7
    assert (chosen.model.vocab_size, chosen.model.hidden_size) == (259, edifice.config.hidden_size)


def test_resuming_goes_on_as_it_was_asked(text: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    arguments = ["--data", str(text), *TINY, "--steps", "3", "--batch-size", "2"]
    assert run_here("train", str(folder), *arguments, "--preset", "edifice",
                    "--set", "num_kv_heads=2", "--checkpoint-every", "1") == 0  # fmt: skip
    about = SavedRun(folder).about
    longer = msgspec.structs.replace(about.settings, steps=5)
    _rewrite(folder / STATE, msgspec.structs.replace(about, settings=longer))
    assert run_here("train", str(folder), "--resume", "--device", "cpu", "--num-threads", "1") == 0
    assert SavedRun(folder).about == msgspec.structs.replace(about, settings=longer, step=5)


def test_ctrl_c_says_how_to_go_on(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    batch = Text.batch

    def batch_with_signal(task: Text, step: int) -> Tensor:
        if step == 1:
            signal.raise_signal(signal.SIGINT)
        return batch(task, step)

    arguments = ["--data", str(text), *TINY, "--set", "num_kv_heads=1", "--steps", "4"]
    with monkeypatch.context() as patched:
        patched.setattr(Text, "batch", batch_with_signal)
        assert run_here("train", str(folder), *arguments, "--preset", "xunhao") == 130
    said = f"2 of 4 steps are saved; go on: nsa-serve train {folder} --resume\n"
    assert capsys.readouterr().err.endswith(said)
    assert run_here("train", str(folder), "--resume", "--device", "cpu") == 0
    assert SavedRun(folder).about.step == 4


def _rewrite(path: Path, about: msgspec.Struct) -> None:
    from safetensors.torch import load_file, save_file

    save_file(load_file(path), path, {"about": msgspec.json.encode(about).decode()})


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        (["--preset", "deepseek"], "preset 'deepseek' is not known, expected one of: paper, fla"),
        (["--task", "text"], "the text task needs a data file"),
        (["--task", "sequence", "--data", "x"], "the sequence task takes neither data nor"),
        (["--data", "none.txt"], "none.txt: No such file or directory"),
        (["--data", "x", "--tokenizer", "none"], "none"),
        (["--steps", "0"], "steps must be at least 1"),
        (["--epochs", "-1"], "steps must be at least 1"),
        (["--batch-size", "0"], "batch_size must be at least 1"),
        (["--sequence-length", "1"], "sequence_length must be at least 2"),
        (["--sequence-length", "5000"], "exceeds the model's 1024 positions"),
        (["--learning-rate", "0"], "learning_rate must be in (0, 100]"),
        (["--learning-rate", "inf"], "learning_rate must be in (0, 100]"),
        (["--learning-rate", "nan"], "learning_rate must be in (0, 100]"),
        (["--dropout", "1"], r"dropout must be in [0, 1)"),
        (["--grad-clip", "-1"], "grad_clip must not be negative"),
        (["--seed", "-1"], "seed must be in"),
        (["--data", "x", "--epochs", "2"], "it has no epochs; --steps says how long"),
        (["--set", "num_layer=3"], "num_layer"),
        (["--set", "nsa.windows=3"], "windows"),
        (["--set", "num_heads=3"], "must divide num_heads 3"),
        (["--preset", "xunhao", "--set", "num_layers=4000"], "GiB, there are "),
        (["--device", "tpu"], "tpu"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_wrong_is_one_line(
    arguments: list[str],
    cause: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_here("train", "folder", *arguments) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert cause in err
    assert err.count("\n") == 1
    assert not (tmp_path / "folder").exists()


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        (["--steps", "3", "--epochs", "2"], "takes the place of --steps"),
        (["--set", "num_layers"], "is not NAME=VALUE"),
        (["--resume", "--steps", "3"], "goes on as it was asked, without --steps"),
        (["--resume", "--set", "num_layers=3"], "without --set"),
        (["--resume", "--small"], "without --small"),
        (["--task", "images"], "images"),
        (["--dtype", "float16"], "float16"),
    ],
)
def test_a_wrong_command_line_is_refused(
    arguments: list[str], cause: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_here("train", str(tmp_path / "folder"), *arguments) == 2
    assert cause in capsys.readouterr().err
    assert not (tmp_path / "folder").exists()

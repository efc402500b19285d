"""A run that is interrupted and resumed ends as one that was not, bit for bit."""

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from nsa_serve.errors import ConfigError, ModelLoadError
from nsa_serve.train import sequences
from nsa_serve.train.checkpoint import LOG, STATE
from nsa_serve.train.log import read_log
from nsa_serve.train.settings import TaskName, TrainSettings
from nsa_serve.train.trainer import Trainer
from tests.support.training import CPU, tiny_model, tiny_settings, train

TASKS: tuple[TaskName, ...] = ("sequence", "text")


def lines(folder: Path) -> list[dict[str, Any]]:
    """The log without what a clock wrote."""
    return [{k: v for k, v in line.items() if k != "seconds"} for line in read_log(folder / LOG)]


def assert_same_end(one: Path, other: Path) -> None:
    """Weights, moments of the optimizer, random numbers."""
    mine, theirs = load_file(one / STATE), load_file(other / STATE)
    assert mine.keys() == theirs.keys()
    assert any(name.startswith("optimizer/exp_avg_sq/") for name in mine)
    for name, tensor in mine.items():
        assert torch.equal(tensor, theirs[name]), name
    assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("until", [1, 3, 7])
def test_resuming_is_exact(
    task: TaskName, until: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sequences, "NUM_SEQUENCES", 100)
    # 3 steps an epoch, so inside and at the end of one; dropout draws random numbers
    batch_size = 40 if task == "sequence" else 4
    settings = tiny_settings(tmp_path, task, batch_size=batch_size, log_every=1, evaluate_every=8)
    train(tmp_path / "whole", settings)
    train(tmp_path / "parts", settings, until)
    torch.manual_seed(99)
    train(tmp_path / "parts", None)
    assert_same_end(tmp_path / "whole", tmp_path / "parts")
    own = [line for line in lines(tmp_path / "parts") if line["step"] == 8 or "loss" in line]
    assert own == [
        line for line in lines(tmp_path / "whole") if line["step"] == 8 or "loss" in line
    ]
    assert [line["step"] for line in own if "loss" in line] == list(range(1, 9))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_ends_the_step_and_saves(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny_settings(tmp_path, "text", checkpoint_every=100)
    train(tmp_path / "whole", settings)
    trainer = Trainer(tmp_path / "parts", settings, CPU)
    batch = trainer.task.batch

    def batch_with_signal(step: int) -> torch.Tensor:
        if step == 4:
            signal.raise_signal(number)
        return batch(step)

    monkeypatch.setattr(trainer.task, "batch", batch_with_signal)
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert signal.getsignal(number) is before
    assert trainer.step == 5
    train(tmp_path / "parts", None)
    assert_same_end(tmp_path / "whole", tmp_path / "parts")


def test_a_run_that_was_killed_goes_on_from_its_last_checkpoint(tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path, "text")
    train(tmp_path / "whole", settings)
    trainer = Trainer(tmp_path / "parts", settings, CPU)
    trainer.run(until=3)
    for _ in range(2):  # steps that no checkpoint has, then the end in the middle of writing
        trainer._take_step()
    with (tmp_path / "parts" / LOG).open("a") as log:
        log.write('{"step": 4, "loss": 1.0}\n{"step": 5, "lo')
    (tmp_path / "parts" / STATE).with_name("state.safetensors.part").write_bytes(b"half")
    train(tmp_path / "parts", None)
    assert_same_end(tmp_path / "whole", tmp_path / "parts")
    assert {"step": 4, "loss": 1.0} not in lines(tmp_path / "parts")
    assert [line["step"] for line in lines(tmp_path / "parts")] == [2, 3, 3, 4, 4, 6, 8, 8]


def test_another_seed_trains_another_model(tmp_path: Path) -> None:
    ends = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(tmp_path / name, tiny_settings(tmp_path, "text", seed=seed))
        ends.append((tmp_path / name / "model.safetensors").read_bytes())
    assert ends[0] == ends[1]
    assert ends[0] != ends[2]


def test_tied_embeddings_resume_too(tmp_path: Path) -> None:
    model = tiny_model("text", tie_word_embeddings=True)
    settings = tiny_settings(tmp_path, "text", model=model)
    train(tmp_path / "whole", settings)
    train(tmp_path / "parts", settings, until=4)
    train(tmp_path / "parts", None)
    assert_same_end(tmp_path / "whole", tmp_path / "parts")


def damaged(folder: Path, settings: TrainSettings) -> None:
    train(folder, settings, until=1)
    path = folder / STATE
    path.write_bytes(path.read_bytes()[:1000])


def of_another_format(folder: Path, settings: TrainSettings) -> None:
    train(folder, settings, until=1)
    (folder / STATE).write_bytes((folder / "model.safetensors").read_bytes())


def without_its_data(folder: Path, settings: TrainSettings) -> None:
    train(folder, settings, until=1)
    Path(settings.data[0]).unlink()


def with_other_data(folder: Path, settings: TrainSettings) -> None:
    train(folder, settings, until=1)
    path = Path(settings.data[0])
    path.write_bytes(path.read_bytes().replace(b"two", b"one"))


def done(folder: Path, settings: TrainSettings) -> None:
    train(folder, settings)


def empty(folder: Path, settings: TrainSettings) -> None:
    folder.mkdir()


@pytest.mark.parametrize(
    ("make", "cause"),
    [
        (damaged, "state.safetensors: "),
        (of_another_format, "state.safetensors is not a training state"),
        (without_its_data, r"text.txt: No such file or directory"),
        (with_other_data, "the data is not what the run began with"),
        (done, "all 8 steps are done"),
        (empty, "holds no training state to resume"),
    ],
)
def test_what_cannot_be_resumed_is_one_line(make: Any, cause: str, tmp_path: Path) -> None:
    make(tmp_path / "run", tiny_settings(tmp_path, "text"))
    with pytest.raises(ConfigError, match=cause) as caught:
        Trainer(tmp_path / "run", None, CPU)
    assert "\n" not in str(caught.value)


def test_a_folder_that_holds_something_is_not_begun(tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path, "text")
    train(tmp_path / "run", settings, until=1)
    state = (tmp_path / "run" / STATE).read_bytes()
    with pytest.raises(ConfigError, match="is not empty; --resume goes on"):
        Trainer(tmp_path / "run", settings, CPU)
    assert (tmp_path / "run" / STATE).read_bytes() == state
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="file: "):
        Trainer(tmp_path / "file", settings, CPU)
    with pytest.raises(ModelLoadError):
        Trainer(tmp_path / "nothing", None, CPU)

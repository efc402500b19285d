"""What is trained on, and what is held back."""

from pathlib import Path

import pytest
import torch

from nsa_serve.errors import ConfigError
from nsa_serve.text.tokenizer import Tokenizer
from nsa_serve.train.sequences import NUM_SEQUENCES, Sequences
from nsa_serve.train.task import generator_of, make_task
from nsa_serve.train.text import Text
from tests.support.training import tiny_model, tiny_settings


def rows_of_an_epoch(task: Sequences, epoch: int) -> torch.Tensor:
    assert task.epoch is not None
    steps = range(epoch * task.epoch, (epoch + 1) * task.epoch)
    return torch.cat([task.batch(step) for step in steps])


@pytest.mark.parametrize("seed", range(3))
def test_every_digit_is_the_sum_of_the_two_before_it(seed: int, tmp_path: Path) -> None:
    task = Sequences(tiny_settings(tmp_path, "sequence", batch_size=300, seed=seed))
    rows = torch.cat([rows_of_an_epoch(task, 0), *task.validation()])
    assert rows.shape == (NUM_SEQUENCES + 50, 24)
    assert ((rows[:, :-2] + rows[:, 1:-1]) % 10).equal(rows[:, 2:])
    assert rows.min() == 0
    assert rows.max() == 9


@pytest.mark.parametrize("seed", range(3))
def test_no_held_out_sequence_is_trained_on(seed: int, tmp_path: Path) -> None:
    task = Sequences(tiny_settings(tmp_path, "sequence", seed=seed))
    (held_out,) = task.validation()
    trained = {tuple(row) for row in rows_of_an_epoch(task, 0).tolist()}
    assert len({tuple(row) for row in held_out.tolist()}) == 50
    assert not trained & {tuple(row) for row in held_out.tolist()}
    assert task.held_out_texts == ["".join(map(str, row)) for row in held_out.tolist()]


def test_every_pair_is_seen_somewhere(tmp_path: Path) -> None:
    for seed in range(4):
        task = Sequences(tiny_settings(tmp_path, "sequence", seed=seed))
        rows = rows_of_an_epoch(task, 0)
        pairs = torch.stack([rows[:, :-2], rows[:, 1:-1]], -1).flatten(0, 1)
        assert len(pairs.unique(dim=0)) == 100


def test_an_epoch_is_all_sequences_once_in_another_order(tmp_path: Path) -> None:
    task = Sequences(tiny_settings(tmp_path, "sequence", batch_size=300))
    assert task.epoch == 4
    first, second = rows_of_an_epoch(task, 0), rows_of_an_epoch(task, 1)
    assert not first.equal(second)
    assert sorted(first.tolist()) == sorted(second.tolist())
    assert len(task.batch(3)) == 100


def test_a_batch_depends_on_seed_and_step_alone(tmp_path: Path) -> None:
    for name in ("sequence", "text"):
        settings = tiny_settings(tmp_path, name)
        one, other = make_task(settings), make_task(settings)
        other.batch(0)
        torch.manual_seed(5)
        assert one.batch(7).equal(other.batch(7))
        assert not one.batch(7).equal(one.batch(8))


def test_text_that_is_validated_on_is_never_trained_on(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"a" * 300)
    (tmp_path / "b.txt").write_bytes(b"b" * 285 + b"c" * 50)
    data = tuple(str(tmp_path / name) for name in ("a.txt", "b.txt"))
    task = Text(tiny_settings(tmp_path, "text", data=data, sequence_length=24))
    seen = torch.cat([task.batch(step) for step in range(200)])
    assert seen.shape == (800, 25)
    assert set(seen.unique().tolist()) == set(b"abc")
    # 5 % of 635 bytes are held out: 31, one window; 19 bytes of c are left to train on
    (held_out,) = task.validation()
    assert bytes(held_out.flatten().tolist()) == b"c" * 25
    assert 0 < int((seen == ord("c")).sum(1).max()) <= 19


def test_text_goes_through_a_tokenizer_too(tmp_path: Path) -> None:
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    Tokenizer.byte_level().save(folder / "tokenizer.json")
    (folder / "tokenizer_config.json").write_text("{}")
    by_byte = Text(tiny_settings(tmp_path, "text"))
    tokenized = Text(tiny_settings(tmp_path, "text", tokenizer=str(folder)))
    assert by_byte.batch(3).equal(tokenized.batch(3))
    (tmp_path / "out").mkdir()
    tokenized.write_tokenizer(tmp_path / "out")
    copied = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert copied == {path.name: path.read_bytes() for path in folder.iterdir()}


def test_bytes_decode_as_they_came(tmp_path: Path) -> None:
    task = Text(tiny_settings(tmp_path, "text"))
    task.write_tokenizer(tmp_path)
    tokens = task.batch(0)[0].tolist()
    assert Tokenizer.from_folder(tmp_path).decode(tokens).encode() == bytes(tokens)


@pytest.mark.parametrize(
    ("content", "with_tokenizer", "cause"),
    [
        (None, False, "data.txt: No such file or directory"),
        (b"", False, "data.txt is empty"),
        (b"x" * 49, False, "has 49 tokens, too few for sequences of 24: there must be 50"),
        (b"text \xff\xfe" * 20, True, "data.txt is not UTF-8 text, at byte 5"),
    ],
)
def test_data_that_does_not_do_is_one_line(
    content: bytes | None, with_tokenizer: bool, cause: str, tmp_path: Path
) -> None:
    path = tmp_path / "data.txt"
    if content is not None:
        path.write_bytes(content)
    Tokenizer.byte_level().save(tmp_path / "tokenizer.json")
    tokenizer = str(tmp_path) if with_tokenizer else None
    settings = tiny_settings(tmp_path, "text", data=(str(path),), tokenizer=tokenizer)
    with pytest.raises(ConfigError, match=cause) as caught:
        make_task(settings)
    assert "\n" not in str(caught.value)


def test_a_vocabulary_that_is_too_small_is_named(tmp_path: Path) -> None:
    model = tiny_model("text", vocab_size=200)
    with pytest.raises(ConfigError, match=r"tokenizer has 259 tokens, the model .* of 200"):
        make_task(tiny_settings(tmp_path, "text", model=model))


def test_places_draw_numbers_of_their_own() -> None:
    drawn = [
        torch.randint(2**40, (), generator=generator_of(*place)).item()
        for place in ((0,), (1,), (0, 0), (0, 1), (1, 0), (0, 1, 0), (0, 0, 1))
    ]
    assert len(set(drawn)) == len(drawn)

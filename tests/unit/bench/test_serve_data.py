"""Prompts: their sizes, where needles stand, and what a seed repeats."""

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

from nsa_serve.bench.serve.datasets import file_samples, random_samples
from nsa_serve.bench.serve.needles import Found, count_found, needle_samples
from nsa_serve.bench.serve.options import BenchOptions, DataOptions, NeedleData, RandomData
from nsa_serve.bench.serve.prompts import Sample
from nsa_serve.bench.serve.records import Needle, RequestRecord
from nsa_serve.bench.serve.run import make_samples
from nsa_serve.bench.serve.sizing import EstimatingSizer, LocalSizer
from nsa_serve.errors import ConfigError
from nsa_serve.text.tokenizer import Tokenizer

BYTES = LocalSizer(Tokenizer.byte_level(), "bytes")
ROUGH = EstimatingSizer(4.5, 3, "rough")


def _text(sample: Sample) -> str:
    assert isinstance(sample.prompt, str)
    return sample.prompt


def test_random_prompts_have_the_tokens_that_were_asked_for() -> None:
    options = RandomData(input_len=200, output_len=50, range_ratio=0.5)
    samples = random_samples(options, 200, BYTES, random.Random(1))
    lengths = [BYTES.count(_text(sample)) for sample in samples]
    assert lengths == [sample.prompt_tokens for sample in samples]
    assert min(lengths) < 120 <= 280 < max(lengths)
    assert all(100 <= length <= 300 for length in lengths)
    assert {sample.max_tokens for sample in samples} <= set(range(25, 76))
    assert len(set(map(_text, samples))) == 200


def test_estimated_sizes_leave_room_for_what_is_around_a_prompt() -> None:
    samples = random_samples(RandomData(input_len=100), 20, ROUGH, random.Random(1))
    for sample in samples:
        assert (100 - 3) * 4.5 - 10 < len(_text(sample)) <= (100 - 3) * 4.5
        assert ROUGH.count(_text(sample)) == pytest.approx(100, abs=3)


def test_prefixes_are_shared() -> None:
    options = RandomData(input_len=20, prefix_len=40, num_prefixes=3)
    samples = random_samples(options, 60, BYTES, random.Random(2))
    assert len({_text(sample)[:40] for sample in samples}) == 3
    assert len({_text(sample)[40:] for sample in samples}) == 60
    assert samples[0].prompt_tokens == 60


def test_token_ids_are_exact() -> None:
    options = RandomData(input_len=33, prefix_len=7, vocab_size=50)
    for sample in random_samples(options, 9, ROUGH, random.Random(3)):
        ids = sample.as_prompt()
        assert isinstance(ids, list)
        assert (len(ids), max(ids) < 50) == (40, True)
        with pytest.raises(ConfigError, match="endpoint completions"):
            sample.as_messages()


def test_a_seed_repeats_prompts_and_another_does_not() -> None:
    options = BenchOptions(num_warmups=3, data=DataOptions(num_prompts=5))
    made = [make_samples(options, ROUGH, random.Random(seed)) for seed in ("1/0", "1/0", "1/1")]
    assert made[0] == made[1]
    prompts = [{_text(s) for s in (*warmups, *samples)} for warmups, samples in made]
    assert [len(found) for found in prompts] == [8, 8, 8]
    assert not prompts[0] & prompts[2]
    assert [len(part) for part in made[0]] == [3, 5]


def test_needles_stand_where_they_should_in_texts_of_the_right_length() -> None:
    options = NeedleData(lengths=(600, 2000), depths=(0.0, 50.0, 100.0), repeat=4, distractors=2)
    samples = needle_samples(options, BYTES, random.Random(4))
    assert len(samples) == options.num_prompts == 24
    for sample in samples:
        assert sample.needle is not None
        text = _text(sample)
        assert sample.needle.length - 120 < BYTES.count(text) <= sample.needle.length
        assert len(re.findall(r"The secret number of \w+ is \d{6}\.", text)) == 3
        hay = text.split("\n\n")[1]
        sentences = re.split(r"(?<=\.) ", hay)
        (place,) = [i for i, s in enumerate(sentences) if sample.needle.answer in s]
        assert place == pytest.approx(sample.needle.depth / 100 * (len(sentences) - 1), abs=1)
        city = re.findall(r"number of (\w+) is", text)[-1]
        assert f"The secret number of {city} is {sample.needle.answer}." in hay
        assert text.count(sample.needle.answer) == 1


def test_a_haystack_is_taken_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "hay.txt"
    path.write_text("Call me Ishmael. Some years ago!\nNever mind how long. " * 3)
    options = NeedleData(lengths=(512,), depths=(50.0,), haystack=path)
    (sample,) = needle_samples(options, BYTES, random.Random(5))
    assert {"Call me Ishmael.", "Some years ago!", "Never mind how long."} <= set(
        re.split(r"(?<=[.!]) ", _text(sample).split("\n\n")[1])
    )
    path.write_text(" \n ")
    with pytest.raises(ConfigError, match="holds no sentence"):
        needle_samples(options, BYTES, random.Random(5))


def test_found_needles_are_counted_by_length_and_depth() -> None:
    def record(length: int, depth: float, text: str, status: Any = "ok") -> RequestRecord:
        needle = Needle(length=length, depth=depth, answer="111111")
        return RequestRecord(index=0, needle=needle, text=text, status=status)

    found = count_found(
        [
            record(512, 0.0, "111111"),
            record(512, 0.0, "no"),
            record(256, 50.0, "it is 111,111"),
            record(256, 50.0, "111111", "failed"),
            RequestRecord(index=9, status="ok"),
        ]
    )
    assert found == [Found(256, 50.0, 1, 1), Found(512, 0.0, 2, 1)]
    assert [cell.share for cell in found] == [1.0, 0.5]


def _file(tmp_path: Path, content: str, dataset: Any = "jsonl", **more: Any) -> DataOptions:
    path = tmp_path / "data"
    path.write_text(content)
    return DataOptions(dataset=dataset, path=path, **more)


def test_jsonl_has_prompts_or_messages(tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    lines = [
        {"prompt": "Hello there", "max_tokens": 9},
        {"messages": messages, "output_tokens": 7, "else": 1},
        {"prompt": "Without a length"},
    ]
    options = _file(tmp_path, "\n\n".join(map(json.dumps, lines)))
    samples = file_samples(options, 6, BYTES, random.Random(6))
    assert sorted(sample.max_tokens for sample in samples) == [7, 7, 9, 9, 128, 128]
    chat = next(sample for sample in samples if sample.max_tokens == 7)
    assert chat.as_messages() == messages
    with pytest.raises(ConfigError, match="endpoint chat"):
        chat.as_prompt()
    plain = next(sample for sample in samples if sample.max_tokens == 9)
    assert plain.as_messages() == [{"role": "user", "content": "Hello there"}]
    assert plain.prompt_tokens == 11
    options = _file(tmp_path, '{"prompt": "Hello there"}', output_len=3)
    assert file_samples(options, 1, BYTES, random.Random(6))[0].max_tokens == 3


def test_sharegpt_takes_the_first_question_and_the_length_of_its_answer(tmp_path: Path) -> None:
    def turns(*values: str) -> dict[str, Any]:
        return {"id": "x", "conversations": [{"from": "human", "value": v} for v in values]}

    data = [turns("What is it?", "Eleven here", "More?"), turns("Alone"), turns("Hi", "Short")]
    samples = file_samples(_file(tmp_path, json.dumps(data), "sharegpt"), 2, BYTES, random.Random())
    assert [(s.prompt, s.max_tokens, s.prompt_tokens) for s in samples] == [
        ("What is it?", 11, 11)
    ] * 2


@pytest.mark.parametrize(
    ("dataset", "content", "told"),
    [
        ("jsonl", '{"prompt": "Hello"}\n{"prompt": 3}', "line 2: Expected `str"),
        ("jsonl", '{"text": "Hello"}', "line 1: expected a prompt or messages"),
        ("jsonl", '{"messages": [{"role": "user"}]}', "line 1: expected a prompt or messages"),
        ("jsonl", "", "holds no usable prompt"),
        ("sharegpt", "{}", "is no list of conversations"),
        ("sharegpt", "[]", "holds no usable prompt"),
    ],
)
def test_files_that_cannot_be_used(dataset: str, content: str, told: str, tmp_path: Path) -> None:
    options = _file(tmp_path, content, dataset)
    with pytest.raises(ConfigError, match=told):
        file_samples(options, 1, BYTES, random.Random())


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    options = DataOptions(dataset="jsonl", path=tmp_path / "nothing")
    with pytest.raises(ConfigError, match="No such file"):
        file_samples(options, 1, BYTES, random.Random())

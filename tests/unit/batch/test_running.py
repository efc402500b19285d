"""Lines in, lines out: each answered once, and bad ones end nothing."""

import errno
import os
import random
import re
import time
from pathlib import Path
from typing import Any

import pytest

from nsa_serve.batch import reading
from nsa_serve.batch.requests import digest_of
from nsa_serve.batch.writing import OutputFile
from nsa_serve.errors import BatchError, EngineDeadError, GenerationError, QueueFullError
from nsa_serve.outputs import RequestOutput
from tests.support import batches
from tests.support.batch_kills import killed_runs
from tests.support.batches import CHAT_URL, KnownEngine, line, many_lines, records, run
from tests.support.command_line import expected_answer, expected_text


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tmp_path / "in.jsonl"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


def answers(source: Path, target: Path, data: bytes) -> list[dict[str, Any]]:
    source.write_bytes(data)
    run(source, target)
    return records(target)


def test_both_endpoints_are_answered_as_over_http(source: Path, target: Path) -> None:
    found = answers(source, target, line("a", max_tokens=9) + line("b", url=CHAT_URL, max_tokens=7))
    by_id = {result["custom_id"]: result for result in found}
    a, b = by_id["a"]["response"], by_id["b"]["response"]
    assert a["status_code"] == b["status_code"] == 200
    assert by_id["a"]["error"] is None
    assert a["body"]["choices"][0]["text"] == expected_text("a", 9)
    messages = [{"role": "user", "content": "b"}]
    assert b["body"]["choices"][0]["message"]["content"] == expected_answer(messages, 7)
    assert a["body"]["usage"] == {"prompt_tokens": 1, "completion_tokens": 9, "total_tokens": 10}
    assert a["body"]["created"] == 1_700_000_000


BAD_LINES = {
    "invalid_json_line": [
        b"nonsense",
        b"[1]",
        b"null",
        b"{} {}",
        b"\xff\xfe",
        b'{"custom_id":NaN}',
    ],
    "missing_required_parameter": [b"{}", b'{"custom_id":"x"}', b'{"custom_id":null}'],
    "invalid_custom_id": [
        b'{"custom_id":7}',
        b'{"custom_id":""}',
        b'{"custom_id":"%s"}' % (b"x" * 513),
    ],
    "invalid_method": [line("x", method="GET"), line("x", method="post")],
    "invalid_url": [line("x", url="/v1/embeddings"), line("x", url="http://a/v1/completions")],
    "invalid_body": [b'{"custom_id":"x","method":"POST","url":"/v1/completions","body":[]}'],
    "duplicate_custom_id": [line("good 1"), line("good 1", method="GET")],
    "line_too_long": [b"x" * (reading.MAX_LINE_BYTES + 1), b'"' + b"y" * (20 << 20) + b'"'],
}


@pytest.mark.parametrize(
    ("code", "bad"), [(code, bad) for code, lines in BAD_LINES.items() for bad in lines]
)
def test_a_bad_line_is_an_error_line(code: str, bad: bytes, source: Path, target: Path) -> None:
    data = line("good 1", max_tokens=3) + bad.removesuffix(b"\n") + b"\n" + line("good 2")
    found = answers(source, target, data)
    (wrong,) = [result for result in found if result["error"] is not None]
    assert wrong["error"]["code"] == code
    assert wrong["error"]["line"] == 2
    assert wrong["response"] is None
    assert sorted(str(result["custom_id"]) for result in found if result is not wrong) == [
        "good 1",
        "good 2",
    ]


@pytest.mark.parametrize(
    ("fields", "status", "code"),
    [
        ({"max_tokens": 0}, 400, "invalid_value"),
        ({"model": "other"}, 404, "model_not_found"),
        ({"stream": True}, 400, "unsupported_parameter"),
        ({"suffix": "x"}, 400, "unsupported_parameter"),
        ({"prompt": "x" * 2000}, 400, "context_length_exceeded"),
        ({"prompt": None}, 400, "invalid_value"),
        ({"n": 129}, 400, "invalid_value"),
    ],
)
def test_a_bad_body_is_the_answer_that_http_gives(
    fields: dict[str, Any], status: int, code: str, source: Path, target: Path
) -> None:
    (found,) = answers(source, target, line("x", **fields))
    assert found["response"]["status_code"] == status
    assert found["response"]["body"]["error"]["code"] == code
    assert found["error"] is None


def test_marks_line_ends_and_blank_lines_are_no_part_of_a_line(source: Path, target: Path) -> None:
    good = line("a").removesuffix(b"\n")
    data = b"\xef\xbb\xbf" + good + b"\r\n\r\n  \n" + line("b").removesuffix(b"\n")
    assert {result["custom_id"] for result in answers(source, target, data)} == {"a", "b"}


@pytest.mark.parametrize(
    ("data", "cause"), [(b"", "is empty"), (b" \n\n", "no request"), (b"\xff\xfea\0", "UTF-16")]
)
def test_an_input_without_requests_is_one_line(
    data: bytes, cause: str, source: Path, target: Path
) -> None:
    source.write_bytes(data)
    with pytest.raises(BatchError, match=cause):
        run(source, target)


def test_an_answer_does_not_depend_on_the_run(source: Path, tmp_path: Path) -> None:
    source.write_bytes(many_lines(100) + line("hot", temperature=1.0))
    runs = [tmp_path / "1", tmp_path / "2"]
    for path in runs:
        run(source, path, KnownEngine(0.005))
    assert batches.sorted_lines(runs[0]) == batches.sorted_lines(runs[1])


def test_seeds_come_from_the_custom_id_unless_given(source: Path, target: Path) -> None:
    engine = KnownEngine()
    source.write_bytes(line("a") + line("b") + line("c", seed=5))
    run(source, target, engine)
    seeds = {prompt: params.seed for prompt, params, _ in engine.calls if isinstance(prompt, str)}
    run(source, target.with_suffix(".2"), engine)
    assert {p: params.seed for p, params, _ in engine.calls if isinstance(p, str)} == seeds
    assert seeds["c"] == 5
    assert None not in seeds.values()
    assert seeds["a"] != seeds["b"]


def test_as_many_run_as_the_engine_holds(source: Path, target: Path) -> None:
    engine = KnownEngine(0.005)
    source.write_bytes(b"".join(line(str(i)) for i in range(400)))
    run(source, target, engine)
    assert engine.info.max_num_seqs <= engine.most_running <= 2 * engine.info.max_num_seqs


def test_requests_for_many_continuations_take_their_places(source: Path, target: Path) -> None:
    engine = KnownEngine(0.005)
    source.write_bytes(b"".join(line(str(i), n=32) for i in range(20)))
    run(source, target, engine)
    assert engine.most_running * 32 <= 2 * engine.info.max_num_seqs


def test_what_the_engine_cannot_compute_is_an_answer(source: Path, target: Path) -> None:
    engine = KnownEngine()
    engine.failure = GenerationError("no number")
    source.write_bytes(line("a"))
    assert run(source, target, engine).num_failed == 1
    assert records(target)[0]["response"]["status_code"] == 500


def test_a_request_that_ends_the_engine_is_given_up(source: Path, target: Path) -> None:
    engine = KnownEngine()
    engine.failure = EngineDeadError("gone")
    source.write_bytes(line("a"))
    run(source, target, engine)
    assert len(engine.calls) == 3
    assert records(target)[0]["response"]["status_code"] == 503


def test_a_full_queue_is_waited_for_as_long_as_it_says(source: Path, target: Path) -> None:
    came: list[float] = []

    class FullOnce(KnownEngine):
        async def generate(self, *args: Any, **kwargs: Any) -> RequestOutput:
            came.append(time.monotonic())
            if len(came) == 1:
                raise QueueFullError("full", retry_after=0.3)
            return await super().generate(*args, **kwargs)

    source.write_bytes(line("a", max_tokens=3))
    assert run(source, target, FullOnce()).num_completed == 1
    refused, answered = came
    assert answered - refused >= 0.3


def test_it_goes_on_after_a_cut_anywhere(source: Path, target: Path) -> None:
    source.write_bytes(line("a", max_tokens=2) + b"nonsense\n" + line("b", max_tokens=2))
    run(source, target)
    whole, lines = target.read_bytes(), batches.sorted_lines(target)
    for length in range(len(whole)):
        target.write_bytes(whole[:length])
        with OutputFile(target, resume=True) as cut:
            assert len(cut.written) == whole[:length].count(b"\n")
        kept, _, _ = whole[:length].rpartition(b"\n")
        assert target.read_bytes().removesuffix(b"\n") == kept
    for length in random.sample(range(len(whole)), 5):
        target.write_bytes(whole[:length])
        run(source, target, resume=True)
        assert batches.sorted_lines(target) == lines, length


def test_killed_twenty_times_it_answers_each_line_once(source: Path, tmp_path: Path) -> None:
    source.write_bytes(many_lines(300))
    whole, target = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    run(source, whole)
    sizes = killed_runs(source, target, num_kills=20)
    run(source, target, resume=True)
    assert batches.sorted_lines(target) == batches.sorted_lines(whole)
    ids = [result["custom_id"] for result in records(target) if result["custom_id"]]
    assert len(ids) == len(set(ids))
    assert len({size for size in sizes if 0 < size < whole.stat().st_size}) >= 3, sizes


def test_a_full_disk_is_one_line_and_the_run_goes_on_later(
    source: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.write_bytes(many_lines(60))
    run(source, target)
    lines, room = batches.sorted_lines(target), target.stat().st_size // 2
    target.unlink()
    pwrite = os.pwrite

    def full(file: int, data: bytes, offset: int) -> int:
        if offset >= room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(file, data[: room - offset], offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(BatchError, match=r"No space left on device.*--resume"):
            run(source, target)
    assert target.read_bytes().endswith(b"\n")
    assert 0 < len(records(target)) < len(lines)
    run(source, target, resume=True)
    assert batches.sorted_lines(target) == lines


def test_a_run_tells_what_failed_first(source: Path, target: Path) -> None:
    source.write_bytes(line("a") + line("b", model="other") + b"nonsense\n")
    progress = run(source, target, KnownEngine(0.001))
    assert progress.num_failed == 2
    found = re.match(r"line (\d): (.*)", progress.first_failure)
    assert found is not None
    assert {"2": "The model 'other'", "3": "the line is not JSON"}[found[1]] in found[2]


def test_a_hundred_bad_lines(source: Path, target: Path) -> None:
    found = answers(source, target, b"bad\n" * 100 + line("good"))
    assert len(found) == 101
    assert {result["error"]["line"] for result in found if result["error"]} == set(range(1, 101))


def test_digests_of_ids_and_lines_differ() -> None:
    assert digest_of("a") != digest_of("a", kind="line")

"""`run-batch` as a user runs it: whole processes, over the stand-in unless said otherwise."""

import random
import re
import resource
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from tests.support import batches
from tests.support.batches import CHAT_URL, line, many_lines, records
from tests.support.command_line import COMMAND, expected_text, start

SUMMARY = b"%d answered, %d failed"


def arguments(source: Path, target: Path, *more: str) -> list[str]:
    return ["run-batch", "-i", str(source), "-o", str(target), "--runner", "stand-in", *more]


def run(source: Path, target: Path, *more: str) -> tuple[int, bytes]:
    with start(*arguments(source, target, *more)) as process:
        out, err = process.communicate(timeout=120)
    assert out == b""
    return process.returncode, err


def test_a_file_is_answered(tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    good = [line(f"r{i}", model="a", max_tokens=9) for i in range(20)]
    source.write_bytes(b"".join(good) + b"nonsense\n" + line("c", url=CHAT_URL, model="a"))
    code, err = run(source, target, "--served-model-name", "a")
    assert code == 0, err
    assert err.startswith(SUMMARY % (21, 1))
    assert b"\nthe first that failed, line 21: the line is not JSON" in err
    assert err.count(b"\n") == 2
    found = [result for result in records(target) if str(result["custom_id"]).startswith("r")]
    assert batches.texts(found) == {f"r{i}": expected_text(f"r{i}", 9) for i in range(20)}


@pytest.mark.parametrize(
    ("name", "more", "cause"),
    [
        ("none", (), b"none: No such file or directory"),
        (".", (), b"is a folder"),
        ("in.jsonl", ("--block-size", "0"), b"block_size must be at least 1"),
    ],
)
def test_what_cannot_start_is_one_line(
    name: str, more: tuple[str, ...], cause: bytes, tmp_path: Path
) -> None:
    (tmp_path / "in.jsonl").write_bytes(line("a"))
    code, err = run(tmp_path / name, tmp_path / "out.jsonl", *more)
    assert code in (1, 2)
    assert cause in b" ".join(err.replace("│".encode(), b"").split())
    assert b"Traceback" not in err


def test_requests_come_through_a_pipe(tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    data = [line(f"r{i}", model="stand-in", max_tokens=3) for i in range(5)]
    with start(*arguments(Path("-"), target)) as process:
        assert process.stdin is not None
        process.stdin.write(data[0])
        process.stdin.flush()
        _until(lambda: target.exists() and target.stat().st_size > 0)  # before the pipe ends
        out, err = process.communicate(b"".join(data[1:]), timeout=120)
    assert (process.returncode, out) == (0, b"")
    assert err.startswith(SUMMARY % (5, 0))
    assert batches.texts(records(target)) == {f"r{i}": expected_text(f"r{i}", 3) for i in range(5)}


def test_ctrl_c_ends_what_waits_for_a_pipe(tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    with start(*arguments(Path("-"), target)) as process:
        assert process.stdin is not None
        process.stdin.write(line("a", model="stand-in"))
        process.stdin.flush()
        _until(lambda: target.exists() and target.stat().st_size > 0)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert process.stderr is not None
        assert process.stderr.read().startswith(SUMMARY % (1, 0))


@pytest.mark.parametrize("name", ["-", "."])
def test_answers_go_to_a_file(name: str, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(line("a"))
    code, err = run(source, Path(name))
    assert (code, err.count(b"\n")) == (1, 1)
    assert b"name" in err


def test_input_and_output_are_not_one_file(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(line("a"))
    code, err = run(source, source)
    assert (code, err.count(b"\n")) == (1, 1)
    assert source.read_bytes() == line("a")


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_resumed(tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_bytes(many_lines(200, model="stand-in"))
    with _limited(arguments(source, target), num_bytes=20_000) as process:
        out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (1, b"")
    assert b"File too large; its lines are whole: go on with --resume" in err
    assert err.count(b"\n") == 1
    assert len(records(target)) > 10
    assert run(source, target, "--resume")[0] == 0
    whole = tmp_path / "whole.jsonl"
    run(source, whole)
    assert batches.sorted_lines(target) == batches.sorted_lines(whole)


@pytest.mark.slow
def test_ctrl_c_ends_it_and_it_is_resumed(tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_bytes(many_lines(300, model="stand-in"))
    with start(*arguments(source, target), stand_in={"step_seconds": 0.02}) as process:
        _until(lambda: target.exists() and target.stat().st_size > 0)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert re.match(rb"\d+ answered, .*: \S+; go on with --resume\n", err), err
    assert b"Traceback" not in err
    assert run(source, target, "--resume")[0] == 0
    assert len({result["id"] for result in records(target)}) == 300


@pytest.mark.slow
def test_killed_twenty_times_in_a_thousand_lines(tmp_path: Path) -> None:
    source, whole, target = (tmp_path / name for name in ("in.jsonl", "whole.jsonl", "out.jsonl"))
    source.write_bytes(many_lines(1000, model="stand-in"))
    assert run(source, whole)[0] == 0
    sizes = []
    for _ in range(20):
        size = target.stat().st_size if target.exists() else 0
        with start(*arguments(source, target, "--resume"), stand_in={"step_seconds": 0.1}) as job:
            _until_grown(target, size, job)
            time.sleep(random.uniform(0.0, 0.3))
            job.kill()
            job.communicate(timeout=60)
        written = target.read_bytes()
        for text in written.split(b"\n")[:-1]:
            msgspec.json.decode(text)
        sizes.append(len(written))
    assert run(source, target, "--resume")[0] == 0
    assert batches.sorted_lines(target) == batches.sorted_lines(whole)
    ids = [result["custom_id"] for result in records(target) if result["custom_id"]]
    assert len(ids) == len(set(ids))
    assert len(set(sizes)) > 10, sizes


def _until_grown(path: Path, size: int, job: subprocess.Popen[bytes]) -> None:
    """Wait until a job has written something, or has ended."""
    _until(lambda: job.poll() is not None or (path.exists() and path.stat().st_size > size))


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _limited(command: list[str], num_bytes: int) -> subprocess.Popen[bytes]:
    """A command whose files cannot grow beyond this."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes))

    return subprocess.Popen(
        [COMMAND, *command], preexec_fn=limit, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )

"""`bench serve` over real sockets: against our own server, and against odd ones."""

import itertools
import json
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.command_line import COMMAND, run_here
from tests.support.http_server import ServerProcess, free_port, run_server
from tests.support.odd_target import DONE, EVENTS, Answer, Body, OddTarget, event, odd_target

SHORT = ("--random-input-len", "40", "--random-output-len", "8")


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with run_server(stand_in={"step_seconds": 0.004}) as server:
        yield server


def _bench(url: str, *arguments: str) -> int:
    return run_here("bench", "serve", "--base-url", url, *arguments)


def _json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_a_load_test_of_our_own_server(
    server: ServerProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [tmp_path / "out" / name for name in ("a.json", "a.jsonl", "a.html")]
    arguments = ["--output", str(files[0]), "--requests", str(files[1]), "--report", str(files[2])]
    goals = ["--goodput", "ttft:30000", "tpot:30000", "e2el:60000"]
    rate = ["--num-prompts", "20", "--request-rate", "100", "--num-warmups", "2"]
    assert _bench(server.url, *SHORT, *rate, *goals, *arguments, "--save-detailed") == 0
    shown = capsys.readouterr().out
    assert "Successful requests:                     20 " in shown
    result = _json(files[0])
    assert (result["model_id"], result["completed"], result["failed"]) == ("stand-in", 20, 0)
    assert (result["total_output_tokens"], result["output_lens"]) == (160, [8] * 20)
    assert result["request_goodput"] == result["request_throughput"]
    assert all(30 < length <= 40 for length in result["input_lens"])
    # A step takes 4 ms, and no token is faster than its step.
    assert result["mean_tpot_ms"] > 3.5
    assert result["median_ttft_ms"] > 3.5
    requests = [json.loads(line) for line in files[1].read_text().splitlines()]
    assert len(requests) == 20
    for request in requests:
        assert (request["status"], request["token_counts"]) == ("ok", "usage")
        assert sum(count for _, count in request["arrivals"]) == 8
        assert request["tpot_ms"] == pytest.approx(
            (request["e2el_ms"] - request["ttft_ms"]) / 7, rel=1e-9
        )
    assert files[2].read_text().count("<svg") == 6


def test_random_prompts_are_new_at_every_run_unless_there_is_a_seed(
    server: ServerProcess, tmp_path: Path
) -> None:
    path = tmp_path / "requests.jsonl"
    texts = []
    for seed in ([], [], ["--seed", "3"], ["--seed", "3"]):
        arguments = ["--num-prompts", "3", "--requests", str(path), *seed]
        assert _bench(server.url, *SHORT, *arguments) == 0
        texts.append([json.loads(line)["text"] for line in path.read_text().splitlines()])
    # The stand-in's answer is a function of its prompt.
    assert texts[0] != texts[1]
    assert texts[2] == texts[3]


def test_a_sweep_with_a_bound_on_those_in_flight(
    server: ServerProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "sweep.json"
    arguments = ["--sweep", "concurrency:1,4", "--num-prompts", "8", "--endpoint", "chat"]
    assert _bench(server.url, *SHORT, *arguments, "--output", str(path)) == 0
    points = _json(path)["points"]
    assert [point["max_concurrency"] for point in points] == [1, 4]
    assert [point["max_concurrent_requests"] for point in points] == [1, 4]
    assert points[1]["request_throughput"] > points[0]["request_throughput"]
    assert points[1]["endpoint_type"] == "openai-chat"
    assert capsys.readouterr().out.count("Closed loop") == 2


def test_token_ids_have_exact_lengths(server: ServerProcess, tmp_path: Path) -> None:
    path = tmp_path / "ids.json"
    ids = ["--vocab-size", "200", "--random-prefix-len", "16", "--num-prompts", "4"]
    assert _bench(server.url, *SHORT, *ids, "--output", str(path)) == 0
    assert _json(path)["total_input_tokens"] == 4 * 56


def test_ctrl_c_keeps_what_was_measured(server: ServerProcess, tmp_path: Path) -> None:
    path = tmp_path / "cut.json"
    arguments = ["--num-prompts", "400", "--max-concurrency", "2", "--output", str(path)]
    process = subprocess.Popen(
        [COMMAND, "bench", "serve", "--base-url", server.url, *SHORT, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    before = server.metric("generation_tokens_total")
    while server.metric("generation_tokens_total") < before + 100:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, f"wrote {path}\n")
    result = _json(path)
    assert 0 < result["completed"] < 400
    assert 1 <= result["cancelled"] <= 2
    assert result["completed"] + result["cancelled"] + result["not_sent"] == 400
    assert "requests were cancelled in flight" in out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--model", "other"], "serves no model other, only stand-in"),
        (["--random-input-len", "9000"], "the target's context 8192"),
        (["--extra-body", '{"top_p": 7}'], "answered 400"),
        (["--dataset", "jsonl"], "needs --dataset-path"),
        (["--dataset", "needle", "--needle-lengths", "9000"], "the target's context 8192"),
    ],
)
def test_what_the_target_or_the_data_cannot_do_is_one_line(
    arguments: list[str], told: str, server: ServerProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _bench(server.url, *arguments) == 1
    shown = capsys.readouterr()
    assert shown.err.startswith("error: ")
    assert shown.err.count("\n") == 1
    assert told in shown.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--goodput", "tft:5"],
        ["ttft:5:6"],
        ["--sweep", "users:1"],
        ["--sweep", "rate:fast"],
        ["--header", "X"],
        ["--extra-body", "[1]"],
        ["--needle-depths", "top"],
    ],
)
def test_flags_that_make_no_sense(arguments: list[str]) -> None:
    assert _bench("http://127.0.0.1:1", *arguments) == 2


def test_nobody_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    assert _bench(url) == 1
    assert capsys.readouterr().err.startswith(f"error: cannot reach {url}: ")


def _chunk(text: str, finish: str | None = None) -> bytes:
    return event(choices=[{"index": 0, "text": text, "finish_reason": finish}])


def _modest(path: str, body: Body) -> Answer:
    """Has no /tokenize, refuses what it does not know, tells no usage in streams."""
    if path != "/v1/completions":
        return 404, "application/json", [b"{}"]
    if "stream_options" in body:
        return 400, "application/json", [b'{"error": "stream_options?"}']
    if not body["stream"]:
        usage = {"usage": {"prompt_tokens": 2 + len(body["prompt"]) // 5}}
        return 200, "application/json", [json.dumps(usage).encode()]
    return 200, EVENTS, [_chunk("a"), _chunk("b", "length"), DONE]


def _test_of(target: OddTarget, tmp_path: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    path = tmp_path / "odd.json"
    status = _bench(target.url + "/v1/", *SHORT, "--output", str(path), *arguments)
    return status, _json(path)


def test_a_target_that_knows_little_is_measured_all_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with odd_target(_modest) as target:
        headers = ["--header", "X-Name=a value", "--api-key", "secret", "--ignore-eos"]
        model = ["--model", "m", "--num-prompts", "5", "--extra-body", '{"top_k": 3}']
        status, result = _test_of(target, tmp_path, *headers, *model)
    assert (status, result["completed"], result["total_output_tokens"]) == (0, 5, 10)
    assert "every chunk counted as one token" in capsys.readouterr().out
    body, sent = target.bodies[-1], target.headers[-1]
    assert len(body.pop("prompt")) == pytest.approx(190, abs=12)
    assert body == {"model": "m", "temperature": 0.0, "stream": True, "max_tokens": 8,
                    "ignore_eos": True, "top_k": 3}  # fmt: skip
    assert (sent["X-Name"], sent["Authorization"]) == ("a value", "Bearer secret")


def test_failures_are_told_apart_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = itertools.count()
    broken = [
        (200, EVENTS, [_chunk("a"), event(error={"message": "out of memory"}), DONE]),
        (200, EVENTS, [_chunk("a")]),
        (200, EVENTS, [_chunk("a"), _chunk("", "stop")]),  # no [DONE], but an end
        (503, "text/plain", [b"full"]),
        (200, "application/json", [b'{"choices": []}']),
        (503, "text/plain", [b"full"]),
    ]

    def respond(path: str, body: Body) -> Answer:
        if path != "/v1/completions":
            return 404, "application/json", [b"{}"]
        if body["max_tokens"] == 1:
            usage = {"prompt_tokens": 2 + len(body["prompt"]) // 5}
            return 200, "application/json", [json.dumps({"usage": usage}).encode()]
        return broken[next(asked)]

    with odd_target(respond, ["m"]) as target:
        arguments = ["--num-prompts", "6", "--max-concurrency", "1"]
        status, result = _test_of(target, tmp_path, *arguments)
    assert (status, result["completed"], result["failed"]) == (0, 1, 5)
    assert result["error_counts"] == {
        "HTTP 503: full": 2,
        '{"message": "out of memory"}': 1,
        "the stream ended before the answer did": 1,
        'HTTP 200: {"choices": []}': 1,
    }
    assert "2 failed: HTTP 503: full" in capsys.readouterr().out


def test_a_target_that_hangs_is_timed_out_and_nothing_succeeded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def respond(path: str, body: Body) -> Answer:
        if body.get("max_tokens") == 8:
            time.sleep(0.6)
        return _modest(path, body)

    with odd_target(respond) as target:
        arguments = ["--model", "m", "--num-prompts", "2", "--timeout", "0.3"]
        status, result = _test_of(target, tmp_path, *arguments)
    assert (status, result["completed"], result["failed"]) == (1, 0, 2)
    assert "2 failed: no end after 0.3 s" in capsys.readouterr().out


def test_needles_are_found_by_a_target_that_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It knows only the first half of a text."""

    def respond(path: str, body: Body) -> Answer:
        if not body.get("stream"):
            return _modest(path, body)
        prompt: str = body["prompt"]
        city = prompt.rsplit(" is", 1)[0].rsplit(" ", 1)[-1]
        known = prompt[: len(prompt) // 2].partition(f"number of {city} is ")[2]
        return 200, EVENTS, [_chunk(f" {known[:6]}.", "stop"), DONE]

    path = tmp_path / "needles.json"
    with odd_target(respond) as target:
        needles = ["--needle-lengths", "256,512", "--needle-depths", "0,20,80,100"]
        arguments = ["--dataset", "needle", "--model", "m", "--needle-repeat", "2"]
        assert _bench(target.url, *arguments, *needles, "--output", str(path)) == 0
    shares = {(n["length"], n["depth"]): n["found"] / n["asked"] for n in _json(path)["needles"]}
    assert shares == {(n, d): float(d < 50) for n in (256, 512) for d in (0.0, 20.0, 80.0, 100.0)}
    assert "Needles found:                           8 of 16" in capsys.readouterr().out

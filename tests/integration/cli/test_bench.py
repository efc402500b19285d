"""`bench` as users run it, small enough for a CPU."""

import os
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from nsa_serve.bench.results import EngineReport, KernelReport, read_engine_report
from tests.support.command_line import COMMAND, run_here
from tests.support.model_folders import write_tiny_folder

SMALL = ("--device", "cpu", "--num-threads", "1", "--num-pages", "64", "--block-size", "8")
TINY_KERNELS = ("--device", "cpu", "--heads", "2/1/8", "--batch", "2", "--context", "80")


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return str(write_tiny_folder(tmp_path / "model"))


def _kernels(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMAND, "bench", "kernels", *arguments],
        env={**os.environ, "TRITON_INTERPRET": "0"},  # its interpreter takes minutes
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_kernels_are_not_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_here("bench", "kernels") == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: bench kernels needs a GPU")
    assert shown.err.count("\n") == 1


def test_kernels_on_a_cpu(tmp_path: Path) -> None:
    done = _kernels(*TINY_KERNELS, "--prompt", "70", "--output", str(tmp_path / "kernels.json"))
    assert (done.returncode, done.stderr) == (0, "")
    assert "decode, one layer, heads 2/1/8" in done.stdout
    assert "not measured: fa3, it needs a GPU" in done.stdout
    report = msgspec.json.decode((tmp_path / "kernels.json").read_bytes(), type=KernelReport)
    (layer,) = report.layers
    assert (layer.heads, len(layer.decode), len(layer.prefill)) == ("2/1/8", 1, 1)


def test_json_is_all_that_is_printed() -> None:
    done = _kernels(*TINY_KERNELS, "--prompt", "0", "--json")
    report = msgspec.json.decode(done.stdout, type=KernelReport)
    assert report.layers[0].decode[0].context == 80
    assert report.layers[0].prefill == []


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["kernels", "--device", "cpu", "--heads", "4/3/8"], "kv heads must divide heads"),
        (["throughput", "--vary", "1.0"], "below 1"),
        (["latency", "--output-len", "1"], "output-len"),
        (["latency", "--num-pages", "0"], "num_pages must be at least 1"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_here("bench", *arguments) in (1, 2)
    assert reason in capsys.readouterr().err


def test_latency_of_several_batches(
    folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ["--input-len", "20", "--input-len", "180", "--batch-size", "1", "--batch-size", "3"]
    output = tmp_path / "latency.json"
    arguments = ["--output-len", "5", "--repeat", "2", "--output", str(output)]
    assert run_here("bench", "latency", folder, *SMALL, *sizes, *arguments) == 0
    shown = capsys.readouterr().out
    assert "nsa attention" in shown
    report = read_engine_report(output)
    assert [(p.batch, p.input_len) for p in report.latency] == [
        (1, 20),
        (3, 20),
        (1, 180),
        (3, 180),
    ]
    for point in report.latency[:3]:
        assert point.first_token is not None
        assert point.first_token.count == 2 * point.batch
        assert point.step is not None
        assert point.step.count == 2 * 4
        assert 0.0 < point.step.p50 <= point.step.p99 < point.first_token.p99 * 5
    # 3 · 185 tokens are more than 64 pages of 8.
    assert report.latency[3].first_token is None
    assert report.latency[3].skipped in shown
    assert report.start_seconds > 0.0
    assert report.peak_memory_bytes > 10 << 20


def test_dense_attention_is_one_flag(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--attention", "dense", "--input-len", "20", "--output-len", "3", "--json"]
    assert run_here("bench", "latency", folder, *SMALL, *arguments) == 0
    report = msgspec.json.decode(capsys.readouterr().out, type=EngineReport)
    assert report.attention == "dense"


def test_throughput_counts_every_token(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments: list[Any] = ["--num-prompts", 9, "--input-len", 30, "--output-len", 8]
    flags = [*map(str, arguments), "--max-num-seqs", "4", "--max-num-queued-reqs", "1"]
    assert run_here("bench", "throughput", folder, *SMALL, *flags, "--json") == 0
    done = msgspec.json.decode(capsys.readouterr().out, type=EngineReport).throughput
    assert done is not None
    assert (done.num_prompts, done.input_tokens, done.output_tokens) == (9, 270, 72)
    assert done.total_rate == pytest.approx(done.output_rate * 342 / 72)


def test_throughput_of_requests_that_are_too_long_is_refused(
    folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_here("bench", "throughput", folder, *SMALL, "--input-len", "250") == 1
    assert "too short for a request" in capsys.readouterr().err

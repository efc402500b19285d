"""`doctor` finds what is missing, says what to do, and fails only if nothing can run."""

import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import msgspec
import pytest
import torch

from nsa_serve.cli import checks, machine
from nsa_serve.cli.checks import Finding
from nsa_serve.engine import memory
from nsa_serve.model import int8
from nsa_serve.model.loading import built_in
from tests.support.command_line import run_here


def _without(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    """Make the package `missing` look as if it were not installed."""
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == missing else find_spec(name)
    )


def test_this_machine_can_run_something(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_here("doctor", "--json") == 0
    found = msgspec.json.decode(capsys.readouterr().out, type=list[Finding])
    details = {finding.name: finding.detail for finding in found}
    assert details.keys() >= {"Python", "torch", "CPU", "memory", "GPU", "Triton", "xformers"}
    assert torch.__version__ in details["torch"]
    assert f"msgspec {importlib.metadata.version('msgspec')}" in details["packages"]
    assert all("\n" not in f"{finding.detail}{finding.advice}" for finding in found)


def test_people_see_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_here("doctor") == 0
    shown = capsys.readouterr().out
    for finding in checks.check_all():
        assert finding.name in shown
        assert finding.advice in shown


def test_without_torch_nothing_can_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert run_here("doctor") == 1
    assert "fail  torch" in capsys.readouterr().out


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def requires(_: str) -> list[str]:
        return ["msgspec>=0.19", "no-such-package>=1", 'no-such-extra; extra == "x"']

    monkeypatch.setattr(importlib.metadata, "requires", requires)
    finding = checks.check_packages("packages")
    assert (finding.status, finding.detail) == ("failure", "missing: no-such-package")


def test_a_cpu_without_numba_is_told_how_to_be_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    assert checks.check_numba("numba").status == "ok"
    _without(monkeypatch, "numba")
    finding = checks.check_numba("numba")
    assert finding.status == "warning"
    assert "nsa-serve[cpu]" in finding.advice


@pytest.mark.parametrize(
    ("cuda", "driver", "expected"),
    [
        (None, False, "models run on the CPU"),
        (None, True, "install a CUDA build of torch"),
        ("13.0", True, "nvidia-smi"),
    ],
)
def test_a_missing_gpu_is_explained(
    cuda: str | None,
    driver: bool,
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(checks, "_NVIDIA_DRIVER", tmp_path if driver else tmp_path / "none")
    finding = checks.check_gpu("GPU")
    assert finding.status == "warning"
    assert expected in finding.advice


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two GPUs of 80 GiB."""
    properties = SimpleNamespace(name="H100", total_memory=80 << 30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)


@pytest.mark.usefixtures("gpus")
def test_gpus_are_listed_and_planned_for() -> None:
    assert checks.check_gpu("GPU") == Finding("GPU", "ok", "H100 (80 GiB), H100 (80 GiB)")
    assert machine.memory_gib() == 80.0


@pytest.mark.usefixtures("gpus")
def test_a_gpu_wants_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    _without(monkeypatch, "triton")
    assert checks.check_triton("Triton").status == "warning"


def test_without_a_gpu_triton_is_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    _without(monkeypatch, "triton")
    assert checks.check_triton("Triton").status == "ok"


def test_a_check_that_breaks_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> Any:
        raise RuntimeError("driver\n  mismatch")

    monkeypatch.setattr(torch.cuda, "is_available", broken)
    finding = next(found for found in checks.check_all() if found.name == "GPU")
    assert finding.status == "warning"
    assert finding.detail == "RuntimeError: driver mismatch"


@pytest.mark.parametrize(
    ("cause", "cuda", "status", "detail"),
    [
        (None, "13.0", "ok", "0.0.35"),
        (OSError("libcudart.so.12:\n no file"), "13.0", "warning", "libcudart.so.12: no file"),
        (OSError("libc10_cuda.so: no file"), None, "warning", "libc10_cuda.so: no file"),
    ],
)
def test_xformers_without_operators_gives_the_reason(
    cause: Exception | None,
    cuda: str | None,
    status: str,
    detail: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.version, "cuda", cuda)
    library = ModuleType("xformers._cpp_lib")
    error = None if cause is None else RuntimeError("cannot load C++ extensions")
    if error is not None:
        error.__cause__ = cause
    library.__dict__["_cpp_library_load_exception"] = error
    package = ModuleType("xformers")
    package.__dict__["_cpp_lib"] = library
    monkeypatch.setitem(sys.modules, "xformers", package)
    monkeypatch.setitem(sys.modules, "xformers._cpp_lib", library)
    _without(monkeypatch, "nvidia")
    without_nvidia = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: name == "xformers" or without_nvidia(name)
    )
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "0.0.35")
    finding = checks.check_xformers("xformers")
    assert finding.status == status
    assert detail in finding.detail
    assert "\n" not in finding.detail
    helps = status == "warning" and cuda is not None
    assert ("nvidia-cuda-runtime-cu12" in finding.advice) is helps


def test_a_cpu_without_int8_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8, "supported", lambda: False)
    assert checks.check_cpu("CPU").advice.startswith("int8 needs VNNI or AMX")


@pytest.mark.parametrize(("gib", "status"), [(1, "warning"), (8, "ok")])
def test_little_memory_is_told(gib: int, status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: gib << 30)
    assert checks.check_memory("memory").status == status


def test_the_built_in_model_is_not_fetched_by_looking(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(built_in.CACHE_VARIABLE, str(tmp_path))
    finding = checks.check_built_in_model("built-in model")
    assert finding.status == "warning"
    assert str(tmp_path) in finding.detail
    assert list(tmp_path.iterdir()) == []


def test_an_operating_system_without_unix_sockets_cannot_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check: Callable[[str], Finding] = checks.check_python
    monkeypatch.setattr(checks, "os", SimpleNamespace(name="nt"))
    assert check("Python").status == "failure"

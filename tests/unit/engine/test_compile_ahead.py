"""What the process that compiles kernels finds out, what it leaves, and how its end is met.

Processes, because a test's own Triton interprets kernels and would not compile any.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import msgspec
import pytest

from nsa_serve.config import EngineConfig
from nsa_serve.engine import compile_ahead
from nsa_serve.engine.compile_ahead import CompileAhead, note_of, start_early

pytest.importorskip("triton")

LIST = """
import json, sys
import msgspec
from triton.backends.compiler import GPUTarget
from nsa_serve.config import EngineConfig
from nsa_serve.engine.kernel_process import compile_all, kernels_of

config = msgspec.json.decode(sys.argv[1], type=EngineConfig)
target = GPUTarget("cuda", 90, 32)
kernels = kernels_of(config, target)
print(json.dumps([k.source.fn.fn.__name__ for k in kernels]), flush=True)
small = [k for k in kernels if k.source.fn.fn.__name__ == "_act_mul_kernel"]
compile_all(small, target)
"""


def test_a_rehearsal_names_each_kernel_and_the_cache_gets_it(tmp_path: Path) -> None:
    config = EngineConfig(model="random:1b")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", LIST, msgspec.json.encode(config).decode()],
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    names, *_ = done.stdout.splitlines()
    counts = Counter(json.loads(names))
    expected = {"attend_blocks", "attend_slots", "choose_blocks", "merge_branches"}
    expected |= {"flash_kernel", "_selected_kernel", "_select_kernel", "_scores_kernel"}
    expected |= {"write_kernel", "_slots_kernel", "_norm_kernel", "_act_mul_kernel"}
    expected |= {"best_kernel", "mass_kernel", "pack_kernel", "_draw_kernel"}
    assert expected <= set(counts)
    assert max(counts.values()) <= 4  # no number of a batch makes a kernel of its own
    assert len(list(tmp_path.glob("*/_act_mul_kernel.cubin"))) == counts["_act_mul_kernel"] == 1


def test_a_process_that_cannot_do_it_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    CompileAhead(EngineConfig()).wait()


def test_what_was_compiled_once_is_not_asked_for_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = tmp_path / "compiler"
    script.write_text("#!/bin/sh\ncat > /dev/null; echo total 1; echo done 1\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    monkeypatch.setattr(compile_ahead, "_DEVICES", (str(tmp_path),))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    first = start_early(EngineConfig())
    assert first is not None
    first.wait()
    assert start_early(EngineConfig()) is None
    other = start_early(EngineConfig(model="random:8b"))
    assert other is not None
    other.close()


def test_a_compilation_that_is_not_complete_is_asked_for_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    CompileAhead(EngineConfig()).wait()
    assert not note_of(EngineConfig()).exists()


def test_it_is_started_only_where_a_gpu_may_be(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(compile_ahead, "CompileAhead", lambda config: config)
    monkeypatch.setattr(compile_ahead, "_DEVICES", (str(tmp_path / "none"),))
    assert start_early(EngineConfig()) is None
    monkeypatch.setattr(compile_ahead, "_DEVICES", (str(tmp_path),))
    assert start_early(EngineConfig()) is not None
    assert start_early(EngineConfig(device="cpu")) is None

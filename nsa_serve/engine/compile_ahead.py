"""Kernels compiled by other processes while an engine imports torch and loads its weights.

Triton compiles a kernel when it is first launched, one after the other, which at the first start
on a machine takes longer than everything else. So a process of its own, `kernel_process`, is
started as early as can be, is told what will be served, and leaves what it compiles in Triton's
cache on the disk, with a note for the next start with the same configuration, which then has
nothing to wait for. Without all this everything works the same, only later.
"""

import hashlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import msgspec

from nsa_serve.config import EngineConfig

logger = logging.getLogger(__name__)

_DEVICES = ("/dev/nvidiactl", "/dev/dxg")
"""One of them is there where a GPU of NVIDIA's may be; a guess, for torch is not imported yet."""
_SECONDS_BETWEEN_LINES = 2.0
_SECONDS_AT_MOST = 120.0
_PACKAGES = ("nsa_kernels", "nsa_serve")
"""Their sources decide what is compiled."""


class CompileAhead:
    """One process that compiles, seen from the engine."""

    def __init__(self, config: EngineConfig) -> None:
        """Start the process. Raises OSError if that is impossible."""
        self._note = note_of(config)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "nsa_serve.engine.kernel_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._talk, args=(config,), daemon=True)
        self._reader.start()

    def wait(self) -> None:
        """Return once everything is compiled, or it is clear that it never will be."""
        self._reader.join(_SECONDS_AT_MOST)
        self.close()

    def close(self) -> None:
        """End the process, whatever it is doing."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)  # those that it started too
            self._process.wait()

    def _talk(self, config: EngineConfig) -> None:
        """Say what to do, then follow what it says: how many kernels there are, and a line for
        each that is done."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(OSError), self._process.stdin as stdin:  # it may have ended
            stdin.write(msgspec.json.encode(config))
        total = done = 0
        told = time.monotonic()
        with self._process.stdout as stdout:
            for line in stdout:
                word, number = line.split()
                if word == b"total":
                    total, told = int(number), time.monotonic()
                else:
                    done += 1
                if time.monotonic() - told > _SECONDS_BETWEEN_LINES:
                    told = time.monotonic()
                    logger.info("compiling kernels, once for this GPU: %d of %d", done, total)
        logger.debug("%d of %d kernels were compiled ahead", done, total)
        if 0 < done == total:
            with suppress(OSError):
                self._note.touch()


def start_early(config: EngineConfig) -> CompileAhead | None:
    """Start the process before torch is imported, if a GPU seems to be wanted and there, and not
    all was compiled before."""
    if config.device == "cpu" or not any(Path(device).exists() for device in _DEVICES):
        return None
    if note_of(config).exists():
        return None
    try:
        return CompileAhead(config)
    except OSError:
        return None


def note_of(config: EngineConfig) -> Path:
    """The file in Triton's cache that says that all kernels for this configuration are there."""
    said = hashlib.sha256(msgspec.json.encode(config))
    for package in ("torch", "triton"):
        with suppress(PackageNotFoundError):
            said.update(version(package).encode())
    for path in sorted(_sources()):
        said.update(f"{path} {path.stat().st_mtime_ns}".encode())
    return triton_cache() / f"nsa-serve-{said.hexdigest()[:32]}"


def triton_cache() -> Path:
    """Triton's folder of compiled kernels, which may not exist yet. Imports no Triton."""
    return Path(os.environ.get("TRITON_CACHE_DIR") or Path.home() / ".triton" / "cache")


def _sources() -> Iterator[Path]:
    for package in _PACKAGES:
        spec = find_spec(package)
        for folder in (spec.submodule_search_locations or []) if spec else []:
            yield from Path(folder).rglob("*.py")

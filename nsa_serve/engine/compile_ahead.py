"""Kernels compiled by other processes while an engine imports torch and loads its weights.

Triton compiles a kernel when it is first launched, one after the other, which at the first start
on a machine takes longer than everything else. So a process of its own, `kernel_process`, is
started as early as can be, is told what will be served, and leaves what it compiles in Triton's
cache on the disk. Without it everything works the same, only later.
"""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import msgspec

from nsa_serve.config import EngineConfig

logger = logging.getLogger(__name__)

_DEVICES = ("/dev/nvidiactl", "/dev/dxg")
"""One of them is there where a GPU of NVIDIA's may be; a guess, for torch is not imported yet."""
_SECONDS_BETWEEN_LINES = 2.0
_SECONDS_AT_MOST = 120.0


class CompileAhead:
    """One process that compiles, seen from the engine."""

    def __init__(self, config: EngineConfig) -> None:
        """Start the process. Raises OSError if that is impossible."""
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


def start_early(config: EngineConfig) -> CompileAhead | None:
    """Start the process before torch is imported, if a GPU seems to be wanted and there."""
    if config.device == "cpu" or not any(Path(device).exists() for device in _DEVICES):
        return None
    try:
        return CompileAhead(config)
    except OSError:
        return None

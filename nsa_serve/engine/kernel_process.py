"""The process that compiles kernels: `python -m nsa_serve.engine.kernel_process`.

It reads an `EngineConfig`, as JSON, from its standard input and goes through a start of the engine
on torch's `meta` device. There nothing is computed, but each launch says what Triton would have to
compile. That is then done by as many processes as there are CPU cores, into Triton's cache on the
disk. It prints `total N`, then `done SECONDS` for each. It computes nothing on a GPU.
"""

import argparse
import ctypes
import logging
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from nsa_serve.config import EngineConfig
from nsa_serve.engine.rehearsal import rehearse

logger = logging.getLogger(__name__)

_WARP = 32
_MOST_KERNELS = 256
"""What one byte can number; several times what an engine launches. Others wait to be launched."""
_MAJOR, _MINOR = 75, 76
"""The driver's numbers of a device's attributes: its compute capability."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """One variant of a kernel."""

    source: ASTSource
    options: dict[str, Any]


def main() -> int:
    """Compile what one configuration needs; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m nsa_serve.engine.kernel_process")
    parser.add_argument("--capability", type=int, help="of the GPU, 90 for 9.0; else it is asked")
    parser.add_argument("--log-level", default="WARNING")
    args = parser.parse_args()
    logging.basicConfig(level=args.log_level, format="%(relativeCreated)d ms %(message)s")
    config = msgspec.json.decode(sys.stdin.buffer.read(), type=EngineConfig)
    target = GPUTarget("cuda", args.capability or _capability(config.device), _WARP)
    compile_all(kernels_of(config, target), target)
    return 0


def kernels_of(config: EngineConfig, target: GPUTarget) -> list[Kernel]:
    """What an engine launches. From now on nothing can be launched in this process."""
    kernels: dict[tuple[int, str], Kernel] = {}

    def collect(
        function: JITFunction[Any],
        key: str,
        signature: dict[str, Any],
        device: int,
        constants: dict[Any, Any],
        options: Any,
        attributes: dict[Any, Any],
        warmup: bool,
    ) -> None:
        if (id(function), key) not in kernels:
            source = ASTSource(function, signature, constants, attributes)
            kernels[id(function), key] = Kernel(source, dict(options.__dict__))

    driver.set_active(_NoGpu(target))
    JITFunction._do_compile = collect  # a launch of what was not compiled does nothing more
    logger.debug("all is imported")
    rehearse(config)
    logger.debug("%d kernels", len(kernels))
    return list(kernels.values())


class _NoGpu:
    """Stands for Triton's driver: says what to compile for, runs nothing."""

    def __init__(self, target: GPUTarget) -> None:
        self._target = target

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_all(kernels: Sequence[Kernel], target: GPUTarget) -> None:
    """Compile kernels in processes of their own, those with the longest source first, for they take
    longest. This process has no threads, so it may fork."""
    kernels = sorted(kernels, key=lambda kernel: -len(kernel.source.fn.src))
    _say("total", len(kernels))
    following, feed = os.pipe()  # whoever reads a number compiles that kernel
    os.write(feed, bytes(range(min(len(kernels), _MOST_KERNELS))))
    os.close(feed)
    count = min(len(os.sched_getaffinity(0)), len(kernels))
    workers = [_worker(kernels, target, following) for _ in range(count)]
    for worker in workers:
        os.waitpid(worker, 0)


def _worker(kernels: Sequence[Kernel], target: GPUTarget, following: int) -> int:
    """The number of a process that compiles kernels nobody has begun, until there are none."""
    worker = os.fork()
    if worker == 0:
        try:
            _compile_in_turn(kernels, target, following)
        finally:
            os._exit(0)
    return worker


def _compile_in_turn(kernels: Sequence[Kernel], target: GPUTarget, following: int) -> None:
    while number := os.read(following, 1):
        kernel, began = kernels[number[0]], time.monotonic()
        try:
            compiled = triton.compile(kernel.source, target=target, options=kernel.options)
            _build_launcher(compiled)
        except Exception:  # the engine meets it again, and says so where it is of consequence
            logger.debug("%s", kernel.source.name, exc_info=True)
            continue
        logger.debug("%s took %.2f s", kernel.source.name, time.monotonic() - began)
        _say("done", time.monotonic() - began)


def _build_launcher(compiled: Any) -> None:
    """What hands a kernel its arguments is built by a C compiler in some versions of Triton."""
    from triton.backends.nvidia.driver import CudaLauncher

    CudaLauncher(compiled.src, compiled.metadata)


def _capability(device: str) -> int:
    """The GPU's, asked of its driver: torch would make a context, which takes memory there."""
    cuda = ctypes.CDLL("libcuda.so.1")
    handle, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    _, _, index = device.partition(":")
    for status in (
        cuda.cuInit(0),
        cuda.cuDeviceGet(ctypes.byref(handle), int(index or 0)),
        cuda.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, handle),
        cuda.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, handle),
    ):
        if status != 0:
            raise OSError(f"the CUDA driver answers with error {status}")
    return 10 * major.value + minor.value


def _say(word: str, number: float) -> None:
    """One line in one write: workers share the pipe."""
    os.write(1, f"{word} {number:g}\n".encode())


if __name__ == "__main__":
    sys.exit(main())

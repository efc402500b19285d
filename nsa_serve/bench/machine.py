"""What is measured on, and how fast it is by itself."""

import importlib.metadata
import platform
import subprocess
import time
from pathlib import Path

import torch

from nsa_serve import __version__
from nsa_serve.bench.results import Machine, Rates
from nsa_serve.bench.timing import call_us

_BUFFER_BYTES = {"cuda": 4 << 30, "cpu": 64 << 20}
_MATRIX = {"cuda": 8192, "cpu": 1024}


def this_machine(device: torch.device) -> Machine:
    """Names and versions."""
    on_gpu = device.type == "cuda"
    return Machine(
        device=torch.cuda.get_device_name(device) if on_gpu else _cpu_name(),
        driver=_driver() if on_gpu else "",
        python=platform.python_version(),
        torch=str(torch.__version__),
        triton=_version("triton"),
        nsa_serve=__version__,
        commit=_commit(),
        date=time.strftime("%Y-%m-%d"),
    )


def measure_rates(device: torch.device, dtype: torch.dtype) -> Rates:
    """Copying and reading memory, and multiplying matrices, each at its best."""
    count = _BUFFER_BYTES[device.type] // 4
    source = torch.ones(count, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    copy = call_us(lambda: target.copy_(source), device)
    read = call_us(source.sum, device)
    size = _MATRIX[device.type]
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    product = call_us(lambda: a @ b, device)
    return Rates(
        copy_bytes=2 * source.nbytes / copy * 1e6,
        read_bytes=source.nbytes / read * 1e6,
        matmul_flops=2 * size**3 / product * 1e6,
    )


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {torch.get_num_threads()} threads"


def _driver() -> str:
    return _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0")


def _commit() -> str:
    folder = str(Path(__file__).parent)
    changed = _output("git", "-C", folder, "status", "--porcelain", "--untracked-files=no")
    return _output("git", "-C", folder, "rev-parse", "--short", "HEAD") + ("+" if changed else "")


def _output(*command: str) -> str:
    """What a program prints; empty if it is not there or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""

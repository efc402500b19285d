"""What `doctor` looks at: each check says what it found and what can be done about it."""

import importlib.metadata
import importlib.util
import os
import platform
import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec

from nsa_serve.model.loading.built_in import built_in_folder, cache_root
from nsa_serve.model.loading.json_file import one_line

Status = Literal["ok", "warning", "failure"]

_OPTIONAL = ("GPU", "numba", "Triton", "xformers", "built-in model")
_NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
_LITTLE_MEMORY_GIB = 2.0


class Finding(msgspec.Struct, frozen=True):
    """The outcome of one check, each text one line."""

    name: str
    status: Status
    """A failure: nothing can run."""
    detail: str
    advice: str = ""


def check_all() -> list[Finding]:
    """All findings; a check that cannot be made is one itself."""
    return [_safely(name, check) for name, check in _CHECKS.items()]


def _safely(name: str, check: Callable[[str], Finding]) -> Finding:
    try:
        return check(name)
    except Exception as error:  # whatever a broken installation raises
        status: Status = "warning" if name in _OPTIONAL else "failure"
        text = f"{type(error).__name__}: {one_line(error)}"
        return Finding(name, status, text, "reinstall it, in a fresh environment")


def check_python(name: str) -> Finding:
    """The interpreter and the system below it."""
    detail = f"{platform.python_version()} on {platform.platform()}"
    if os.name != "posix":
        return Finding(name, "failure", detail, "nsa-serve needs Linux or macOS")
    return Finding(name, "ok", detail)


def check_torch(name: str) -> Finding:
    """The build of torch."""
    import torch

    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "built for CPUs"
    return Finding(name, "ok", f"{torch.__version__}, {build}")


def check_cpu(name: str) -> Finding:
    """Threads, vector instructions, int8."""
    import torch

    from nsa_serve.model import int8

    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    detail = f"{threads} threads, {torch.backends.cpu.get_cpu_capability()}"
    if int8.supported():
        kinds = {
            "VNNI": torch.cpu._is_vnni_supported(),
            "AMX": torch.cpu._is_amx_tile_supported(),
        }
        has = " and ".join(kind for kind, there in kinds.items() if there)
        return Finding(name, "ok", f"{detail}, int8 with {has}")
    advice = "int8 needs VNNI or AMX; models run in float32"
    return Finding(name, "warning", f"{detail}, no int8", advice)


def check_numba(name: str) -> Finding:
    """numba, without which a CPU's steps are not compiled."""
    if importlib.util.find_spec("numba") is not None:
        return Finding(name, "ok", f"{importlib.metadata.version('numba')}; compiles a CPU's steps")
    advice = "a CPU serves several times faster with it: pip install 'nsa-serve[cpu]'"
    return Finding(name, "warning", "not installed", advice)


def check_memory(name: str) -> Finding:
    """Free main memory."""
    from nsa_serve.engine.memory import GIB, available_memory

    free = available_memory() / GIB
    detail = f"{free:.1f} GiB of main memory are free"
    if free < _LITTLE_MEMORY_GIB:
        return Finding(name, "warning", detail, "the built-in model needs --cpu-cache-gib 0.25")
    return Finding(name, "ok", detail)


def check_gpu(name: str) -> Finding:
    """GPUs that torch can use."""
    import torch

    from nsa_serve.cli.machine import gpu_memory
    from nsa_serve.engine.memory import GIB

    if gpus := gpu_memory():
        found = ", ".join(f"{gpu} ({num_bytes / GIB:.0f} GiB)" for gpu, num_bytes in gpus)
        return Finding(name, "ok", found)
    if torch.version.cuda:
        advice = "see whether nvidia-smi works; until then models run on the CPU"
        return Finding(name, "warning", f"none that CUDA {torch.version.cuda} can use", advice)
    if _NVIDIA_DRIVER.exists():
        advice = "install a CUDA build of torch; until then models run on the CPU"
        return Finding(name, "warning", "there, but torch is built for CPUs", advice)
    return Finding(name, "warning", "none", "models run on the CPU")


def check_triton(name: str) -> Finding:
    """Triton, which kernels on a GPU need."""
    from nsa_serve.cli.machine import gpu_memory

    if importlib.util.find_spec("triton") is not None:
        return Finding(name, "ok", importlib.metadata.version("triton"))
    if gpu_memory():
        return Finding(name, "warning", "not installed", "install triton: kernels need it")
    return Finding(name, "ok", "not installed; only a GPU needs it")


def check_xformers(name: str) -> Finding:
    """xformers, an optional backend of dense attention, and whether its operators load."""
    if importlib.util.find_spec("xformers") is None:
        return Finding(name, "ok", "not installed; optional, for dense attention")
    from nsa_kernels.dense import xformers_ops

    has_runtime = xformers_ops.preload_cudart()
    if reason := xformers_ops.missing_operators():
        import torch

        advice = "dense attention runs without it"
        if torch.version.cuda and not has_runtime:
            advice = f"install nvidia-cuda-runtime-cu12, which its wheel needs; {advice}"
        return Finding(name, "warning", reason, advice)
    return Finding(name, "ok", importlib.metadata.version("xformers"))


def check_built_in_model(name: str) -> Finding:
    """Whether the built-in model is on this machine."""
    if (folder := built_in_folder()).is_dir():
        return Finding(name, "ok", str(folder))
    advice = "the first use fetches 93 MB with pip, or name a model folder"
    return Finding(name, "warning", f"not yet in {cache_root()}", advice)


def check_packages(name: str) -> Finding:
    """Versions of everything that nsa-serve requires."""
    requirements = importlib.metadata.requires("nsa-serve") or []
    required = [re.split(r"[^\w.-]", text)[0] for text in requirements if "extra ==" not in text]
    versions = {package: _version(package) for package in required}
    if missing := [package for package, version in versions.items() if version is None]:
        return Finding(name, "failure", f"missing: {', '.join(missing)}", "reinstall nsa-serve")
    return Finding(name, "ok", ", ".join(f"{package} {v}" for package, v in versions.items()))


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


_CHECKS: dict[str, Callable[[str], Finding]] = {
    "Python": check_python,
    "torch": check_torch,
    "CPU": check_cpu,
    "numba": check_numba,
    "memory": check_memory,
    "GPU": check_gpu,
    "Triton": check_triton,
    "xformers": check_xformers,
    "built-in model": check_built_in_model,
    "packages": check_packages,
}

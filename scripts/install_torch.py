"""Install torch into this environment: the CPU build unless the machine has an NVIDIA GPU.

A plain `pip install torch` on Linux brings several gigabytes of CUDA packages. Here pip is asked
first what it would install; if that is a CUDA build and there is no GPU, the CPU build is taken
from the PyTorch project's own index (TORCH_INDEX_URL overrides it).
"""

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

CPU_INDEX = "https://download.pytorch.org/whl/cpu"
HELP = """error: no CPU build of torch could be installed.
Set TORCH_INDEX_URL to an index that has one, or install torch into .venv yourself:
  .venv/bin/python -m pip install '{requirement}'"""


def main() -> int:
    """Returns the exit code."""
    requirement = torch_requirement()
    try:
        print(f"torch {version('torch')} is installed")
        return 0
    except PackageNotFoundError:
        pass
    if has_gpu() or not brings_cuda(requirement):
        return pip("install", requirement)
    index = os.environ.get("TORCH_INDEX_URL", CPU_INDEX)
    print(f"No GPU here: taking the CPU build of torch from {index}")
    code = pip("install", "--index-url", index, requirement)
    if code:
        print(HELP.format(requirement=requirement), file=sys.stderr)
    return code


def torch_requirement() -> str:
    """The line of pyproject.toml."""
    import tomllib

    text = (Path(__file__).parent.parent / "pyproject.toml").read_text()
    dependencies: list[str] = tomllib.loads(text)["project"]["dependencies"]
    return next(line for line in dependencies if line.startswith("torch"))


def has_gpu() -> bool:
    """Whether the NVIDIA driver answers."""
    tool = shutil.which("nvidia-smi")
    return tool is not None and subprocess.run([tool, "-L"], capture_output=True).returncode == 0


def brings_cuda(requirement: str) -> bool:
    """Whether pip would install CUDA packages along with torch."""
    report = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed",
         "--report", "-", requirement],
        stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    if report.returncode:
        return True
    names = [item["metadata"]["name"].lower() for item in json.loads(report.stdout)["install"]]
    return any(name.startswith(("nvidia-", "cuda-", "triton")) for name in names)


def pip(*arguments: str) -> int:
    """Run pip in this environment."""
    return subprocess.run([sys.executable, "-m", "pip", *arguments]).returncode


if __name__ == "__main__":
    sys.exit(main())

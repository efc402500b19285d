"""How long work at set-up is reported."""

import sys
from collections.abc import Callable

Progress = Callable[[str, float], None]
"""Called with what is being done and the fraction done, 0 to 1."""


def show_on_stderr(what: str, fraction: float) -> None:
    """A line that counts up on a terminal; elsewhere only its beginning and its end."""
    if sys.stderr.isatty():
        end = "\n" if fraction >= 1.0 else ""
        print(f"\r{what}: {fraction:4.0%}", end=end, file=sys.stderr, flush=True)
    elif fraction in (0.0, 1.0):
        print(f"{what}: {fraction:.0%}", file=sys.stderr, flush=True)

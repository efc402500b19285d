"""A progress bar for work that turns out to take long enough to want one."""

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import Progress

_SECONDS_BEFORE_SHOWN = 1.0


class ProgressBar:
    """Counts to `total` on a terminal's standard error, from one second on; elsewhere is silent."""

    def __init__(self, description: str, total: int, *, enabled: bool) -> None:
        self._enabled = enabled and sys.stderr.isatty()
        self._started = time.monotonic()
        self._progress = Progress(console=Console(stderr=True))
        self._task = self._progress.add_task(description, total=total)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._progress.live.is_started:
            self._progress.stop()

    def advance(self, count: int) -> None:
        """Count `count` more."""
        if not self._enabled:
            return
        self._progress.advance(self._task, count)
        if time.monotonic() - self._started > _SECONDS_BEFORE_SHOWN:
            self._progress.start()

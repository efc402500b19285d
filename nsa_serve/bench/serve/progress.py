"""A progress bar with live rates, on a terminal's standard error."""

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from nsa_serve.bench.serve.records import RequestRecord

_REFRESH = 4.0
_WINDOW = 2.0
"""Seconds that rates are taken over."""


class LiveProgress:
    """Counts requests and tokens; silent where standard error is no terminal."""

    def __init__(self, description: str, total: int, *, enabled: bool = True) -> None:
        self._enabled = enabled and sys.stderr.isatty()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rates]}"),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            refresh_per_second=_REFRESH,
        )
        self._task = self._progress.add_task(description, total=total, rates="")
        self._running = self._failed = self._tokens = self._ended = 0
        self._since = time.perf_counter()
        self._before = (0, 0)
        self._rates = (0.0, 0.0)

    def __enter__(self) -> Self:
        if self._enabled:
            self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._enabled:
            self._progress.stop()

    def started(self, record: RequestRecord) -> None:
        """A request was sent."""
        self._running += 1

    def ended(self, record: RequestRecord) -> None:
        """It ended, however."""
        self._running -= 1
        self._ended += 1
        self._failed += record.status == "failed"
        self._show(1)

    def tokens(self, count: int) -> None:
        """More output tokens came."""
        self._tokens += count
        self._show(0)

    def _show(self, advance: int) -> None:
        seconds = time.perf_counter() - self._since
        if seconds >= 1.0 / _REFRESH and (seconds >= _WINDOW or not any(self._rates)):
            ended, tokens = self._ended - self._before[0], self._tokens - self._before[1]
            self._rates = (ended / seconds, tokens / seconds)
        elif not advance:
            return
        if seconds >= _WINDOW:
            self._since += seconds
            self._before = (self._ended, self._tokens)
        if self._enabled:
            self._progress.update(self._task, advance=advance, rates=self.rates)

    @property
    def rates(self) -> str:
        """What is shown beside the bar."""
        requests, tokens = self._rates
        failed = f"  {self._failed} failed" if self._failed else ""
        return f"{requests:.1f} req/s  {tokens:,.0f} tok/s  {self._running} in flight{failed}"

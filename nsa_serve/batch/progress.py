"""How far a batch is, on standard error: a bar on a terminal, elsewhere a line now and then."""

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from nsa_serve.batch.running import Progress, Throughput

SECONDS_BETWEEN_LINES = 60.0
_MAX_CAUSE = 200


class BatchBar:
    """Shows how much of the input is answered: lines, failures, tokens per second, time left.

    `num_bytes` is the input's, None where nobody knows.
    """

    def __init__(self, num_bytes: int | None) -> None:
        self._num_bytes = num_bytes
        self._throughput = Throughput()
        self._next_line = time.monotonic() + SECONDS_BETWEEN_LINES
        columns = (
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
        )
        self._bar = RichProgress(
            *columns, console=Console(stderr=True), disable=not sys.stderr.isatty()
        )
        self._task = self._bar.add_task("", total=num_bytes, figures="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def show(self, progress: Progress) -> None:
        """Where the run is now."""
        if not self._bar.disable:
            figures = self._figures(progress)
            self._bar.update(self._task, completed=progress.num_bytes, figures=figures)
        elif time.monotonic() > self._next_line:
            self._next_line = time.monotonic() + SECONDS_BETWEEN_LINES
            percent = f"{progress.num_bytes / self._num_bytes:.0%}, " if self._num_bytes else ""
            print(f"{percent}{self._figures(progress)}", file=sys.stderr, flush=True)

    def summary(self, progress: Progress) -> str:
        """The run in one line."""
        parts = [f"{progress.num_completed:,} answered", f"{progress.num_failed:,} failed"]
        if progress.num_skipped:
            parts.append(f"{progress.num_skipped:,} were there before")
        rate = self._throughput.of(progress.num_tokens)
        seconds = self._throughput.seconds
        parts.append(f"{progress.num_tokens:,} tokens in {seconds:,.1f} s ({rate:,.1f} tokens/s)")
        return ", ".join(parts)

    def _figures(self, progress: Progress) -> str:
        rate = self._throughput.of(progress.num_tokens)
        figures = f"{progress.num_completed:,} answered, {rate:,.0f} tokens/s"
        if progress.num_failed:
            figures = f"{figures}, {progress.num_failed:,} failed"
        return figures


def first_failure(progress: Progress) -> str:
    """The first line that failed and why, safe to print; empty if none did."""
    if not progress.first_failure:
        return ""
    cause = "".join(c if c.isprintable() else " " for c in progress.first_failure)
    return f"the first that failed, {cause[:_MAX_CAUSE]}"

"""A bar on the terminal for a batch: lines, failures, tokens per second, time left."""

import sys
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from nsa_serve.batch.running import Progress, Throughput


class BatchBar:
    """Shows how much of the input is answered; silent where standard error is no terminal."""

    def __init__(self, num_bytes: int) -> None:
        self._throughput = Throughput()
        columns = (
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
        )
        self._bar = RichProgress(
            *columns, console=Console(stderr=True), disable=not sys.stderr.isatty()
        )
        self._task = self._bar.add_task("", total=max(num_bytes, 1), figures="")

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
        if self._bar.disable:
            return
        rate = self._throughput.of(progress.num_tokens)
        figures = f"{progress.num_completed:,} answered, {rate:,.0f} tokens/s"
        if progress.num_failed:
            figures = f"{figures}, {progress.num_failed:,} failed"
        self._bar.update(self._task, completed=progress.num_bytes, figures=figures)

    def summary(self, progress: Progress) -> str:
        """The run in one line."""
        parts = [f"{progress.num_completed:,} answered", f"{progress.num_failed:,} failed"]
        if progress.num_skipped:
            parts.append(f"{progress.num_skipped:,} were there before")
        rate = self._throughput.of(progress.num_tokens)
        seconds = self._throughput.seconds
        parts.append(f"{progress.num_tokens:,} tokens in {seconds:,.1f} s ({rate:,.1f} tokens/s)")
        return ", ".join(parts)

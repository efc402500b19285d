"""What a run says: a line of JSON for machines, a bar or lines for people."""

import json
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Log:
    """`log.jsonl`: an object a line, each with the `step` that it was written after."""

    def __init__(self, path: Path, *, resumed_at: int = 0) -> None:
        """What an earlier run wrote after the step that this one resumes at is dropped."""
        self._path = path
        kept = [line for line in read_log(path) if line["step"] <= resumed_at]
        path.write_text("".join(json.dumps(line) + "\n" for line in kept))

    def write(self, step: int, **values: Any) -> None:
        """Append one line."""
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a log, none if there is none; without a last one that was not finished."""
    lines: list[dict[str, Any]] = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines


class Display:
    """A bar on a terminal's standard error; elsewhere a line now and then."""

    _SECONDS_BETWEEN_LINES = 10.0

    def __init__(self, total: int, done: int) -> None:
        self._total, self._last = total, -self._SECONDS_BETWEEN_LINES
        self._bar: Progress | None = None
        if sys.stderr.isatty():
            self._bar = Progress(
                TextColumn("Training"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[figures]}"),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task("Training", total=total, completed=done, figures="")

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, step: int, figures: str, *, always: bool = False) -> None:
        """How far it is, and how well."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step, figures=figures)
            return
        now = time.monotonic()
        if always or now - self._last >= self._SECONDS_BETWEEN_LINES:
            self._last = now
            print(f"step {step}/{self._total}  {figures}", file=sys.stderr, flush=True)

"""The end of a batch: its results become a file of answers and a file of failures."""

import os
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from nsa_api.batches.records import BatchUsage
from nsa_api.responses import Usage


@dataclass(slots=True)
class Parted:
    """Lines of each kind, and what the answers took."""

    completed: int = 0
    failed: int = 0
    model: str | None = None
    usage: BatchUsage = field(default_factory=BatchUsage)

    def add(self, body: "_Body") -> None:
        """Take in an answer."""
        self.completed += 1
        self.model = body.model
        if body.usage is not None:
            self.usage.input_tokens += body.usage.prompt_tokens
            self.usage.output_tokens += body.usage.completion_tokens
            self.usage.total_tokens += body.usage.total_tokens


class _Body(msgspec.Struct):
    model: str | None = None
    usage: Usage | None = None


class _Response(msgspec.Struct):
    status_code: int
    body: _Body


class _Result(msgspec.Struct):
    response: _Response | None


def part_results(results: Path, answers: Path, failures: Path) -> Parted:
    """Write each kind of result to its file; both files are made, and on disk."""
    parted = Parted()
    with answers.open("wb") as good, failures.open("wb") as bad:
        if results.exists():
            with results.open("rb") as file:
                for line in file:
                    response = msgspec.json.decode(line, type=_Result).response
                    if response is not None and response.status_code == 200:
                        good.write(line)
                        parted.add(response.body)
                    else:
                        bad.write(line)
                        parted.failed += 1
        for written in (good, bad):
            written.flush()
            os.fsync(written.fileno())
    return parted

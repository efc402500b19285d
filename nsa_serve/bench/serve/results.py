"""What a run leaves: a point for each load, and the files that keep them."""

import math
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from nsa_serve.bench.serve.needles import Found, count_found
from nsa_serve.bench.serve.notes import notes_on
from nsa_serve.bench.serve.options import BenchOptions, LoadShape
from nsa_serve.bench.serve.records import RequestRecord
from nsa_serve.bench.serve.statistics import errors_of, summarize
from nsa_serve.errors import ConfigError

_MS = 1000.0


class Point(msgspec.Struct, kw_only=True):
    """One load and what came of it."""

    shape: LoadShape
    duration: float
    records: list[RequestRecord]
    figures: dict[str, Any]
    notes: list[str]
    found: list[Found]
    errors: list[tuple[str, int]]


class Run(msgspec.Struct, kw_only=True):
    """All points of a command."""

    options: BenchOptions
    model: str
    seed: int
    date: str
    sizing: str
    """How long prompts were made as long as they are."""
    points: list[Point] = []
    interrupted: bool = False

    def add(self, shape: LoadShape, records: list[RequestRecord], duration: float) -> Point:
        """Work out the figures of one more load."""
        figures = summarize(records, duration, self.options.goodput)
        point = Point(
            shape=shape,
            duration=duration,
            records=records,
            figures=figures,
            notes=notes_on(shape, records, figures, self.options.data.dataset),
            found=count_found(records),
            errors=errors_of(records),
        )
        self.points.append(point)
        return point


def now() -> str:
    """The date as vLLM's benchmark writes it, in UTC."""
    return datetime.now(UTC).strftime("%Y%m%d-%H%M%S")


def as_json(run: Run, *, detailed: bool = False) -> dict[str, Any]:
    """A result with vLLM's keys; of a sweep, an object with a list of them.

    `detailed` adds vLLM's lists with an entry for each request.
    """
    points = [_point_as_json(run, point, detailed) for point in run.points]
    if run.options.sweep is None:
        return points[0] if points else {}
    return {"sweep": run.options.sweep.over, "points": points}


def write_json(path: Path, run: Run, *, detailed: bool = False) -> None:
    """Raises `ConfigError` if it cannot be written."""
    data = msgspec.json.format(msgspec.json.encode(as_json(run, detailed=detailed)), indent=1)
    write(path, data + b"\n")


def write_requests(path: Path, run: Run) -> None:
    """A line of JSON for each request of each point."""
    lines = [
        msgspec.json.encode(_request_as_json(number, record))
        for number, point in enumerate(run.points)
        for record in point.records
    ]
    write(path, b"".join(line + b"\n" for line in lines))


def write(path: Path, data: bytes) -> None:
    """Write a file, and its folder if need be; raises `ConfigError` in one line."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None


def _point_as_json(run: Run, point: Point, detailed: bool) -> dict[str, Any]:
    options, shape = run.options, point.shape
    chat = options.target.endpoint == "chat"
    result: dict[str, Any] = {
        "date": run.date,
        "endpoint_type": "openai-chat" if chat else "openai",
        "backend": "openai-chat" if chat else "openai",
        "label": None,
        "model_id": run.model,
        "tokenizer_id": str(options.data.tokenizer or run.model),
        "num_prompts": len(point.records),
        "request_rate": "inf" if shape.request_rate == math.inf else shape.request_rate,
        "burstiness": "inf" if shape.burstiness == math.inf else shape.burstiness,
        "max_concurrency": shape.max_concurrency,
    }
    if shape.ramp_up is not None:
        result["ramp_up_strategy"] = shape.ramp_up
        result["ramp_up_start_rps"] = shape.ramp_up_start_rps
        result["ramp_up_end_rps"] = shape.ramp_up_end_rps
    result |= point.figures
    result |= {
        "dataset": options.data.dataset,
        "seed": run.seed,
        "base_url": options.target.root,
        "goodput": options.goodput,
        "notes": point.notes,
        "error_counts": dict(point.errors),
    }
    if point.found:
        result["needles"] = point.found
    return result | _details(point.records) if detailed else result


def _details(records: Sequence[RequestRecord]) -> dict[str, Any]:
    return {
        "input_lens": [record.prompt_tokens for record in records],
        "output_lens": [record.output_tokens for record in records],
        "ttfts": [record.ttft or 0.0 for record in records],
        "itls": [record.itls for record in records],
        "start_times": [record.sent for record in records],
        "generated_texts": [record.text for record in records],
        "errors": [record.error for record in records],
    }


def _request_as_json(point: int, record: RequestRecord) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.to_builtins(record)
    derived = dict(_derived(record))
    return {"point": point, **fields, **derived}


def _derived(record: RequestRecord) -> Iterator[tuple[str, Any]]:
    for name, value in (("ttft", record.ttft), ("tpot", record.tpot), ("e2el", record.e2el)):
        yield f"{name}_ms", None if value is None else value * _MS
    yield "queue_ms", record.queued * _MS
    yield "lateness_ms", record.late * _MS
    yield "found", record.found

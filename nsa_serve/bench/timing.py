"""How long GPU work takes, without the host's share: medians after a warm-up."""

import itertools
import statistics
import time
from collections.abc import Callable, Sequence

import torch

Call = Callable[[], object]

_MIN_CALLS = 8
"""Calls in one graph, so that starting the graph does not count."""
_GRAPH_SECONDS = 0.06
_CALL_SECONDS = 0.4
_REPEATS = (5, 200)
_LONG_US = 50_000
"""Three such calls are enough: they are slow, and vary little."""


def graph_us(calls: Sequence[Call], device: torch.device) -> float:
    """Microseconds of one call, where a CUDA graph replays all of them one after the other; on a
    CPU they are just made."""
    if device.type != "cuda":
        return call_us(lambda: [call() for call in calls], device) / len(calls)
    calls = list(itertools.islice(itertools.cycle(calls), max(_MIN_CALLS, len(calls))))
    graph = _captured(calls)
    return _median_us(graph.replay, _GRAPH_SECONDS) / len(calls)


def call_us(call: Call, device: torch.device) -> float:
    """Microseconds of one call; on a GPU between events, with enough calls queued at once that the
    host runs ahead."""
    if device.type != "cuda":
        first = _wall(call)
        times = [_wall(call) for _ in range(min(_REPEATS[0], int(_GRAPH_SECONDS / first)))]
        return statistics.median(times or [first]) * 1e6
    call()
    once = _event_us(call, 1)
    if once > _LONG_US:
        return statistics.median([once, _event_us(call, 1), _event_us(call, 1)])
    queued = max(1, min(20, int(3000 / once)))

    def several() -> None:
        for _ in range(queued):
            call()

    return _median_us(several, _CALL_SECONDS) / queued


def _captured(calls: Sequence[Call]) -> torch.cuda.CUDAGraph:
    """A graph of the calls, each made before, so that it has been compiled and found its plans."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph


def _median_us(call: Call, seconds: float) -> float:
    """Median of as many calls as fit in that time."""
    for _ in range(2):
        call()
    torch.cuda.synchronize()
    once = _event_us(call, 1) / 1e6
    return statistics.median(_event_us(call, 1) for _ in range(_repeats(once, seconds)))


def _repeats(once: float, seconds: float) -> int:
    low, high = _REPEATS
    return max(low, min(high, int(seconds / max(once, 1e-9))))


def _event_us(call: Call, times: int) -> float:
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(times):
        call()
    stop.record()
    stop.synchronize()
    return float(start.elapsed_time(stop)) * 1e3 / times


def _wall(call: Call) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started

"""`nsa-serve bench kernels`: one attention layer, NSA beside dense, checked and then timed."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from nsa_serve.bench.cases import (
    Pool,
    bytes_per_token,
    decode_case,
    in_pages,
    num_cold_tables,
    prefill_case,
)
from nsa_serve.bench.crossover import Crossover, crossover
from nsa_serve.bench.floors import (
    Work,
    decode_work,
    dense_decode_work,
    dense_prefill_work,
    prefill_work,
)
from nsa_serve.bench.machine import measure_rates, this_machine
from nsa_serve.bench.results import KernelReport, Layer, Point, Side
from nsa_serve.bench.shapes import PAGE_SIZE, PAPER, HeadShape
from nsa_serve.bench.sides import Run, dense_sides, load_nsa
from nsa_serve.bench.timing import call_us, graph_us
from nsa_serve.bench.truth import DecodeTruth, PrefillTruth
from nsa_serve.errors import ConfigError

TOLERANCE = {torch.bfloat16: 0.02, torch.float32: 1e-4}
"""Largest relative error of an implementation whose time counts. In bfloat16 the output alone is
rounded by 0.002; the rest is for a block chosen otherwise where two scores nearly tie."""
Ways = Callable[[], Iterable[Sequence[Run]]]
"""Makes the ways in which something may be called, each several calls over other pages."""
ErrorOf = Callable[[Tensor], float]
_MEMORY_SHARE = 0.6


@dataclass(frozen=True, slots=True)
class KernelOptions:
    """What to measure."""

    heads: tuple[HeadShape, ...]
    batches: tuple[int, ...]
    contexts: tuple[int, ...]
    """Of decoding, ascending."""
    prompts: tuple[int, ...]
    """Tokens of prefills."""
    device: str = "cuda"
    cold_cache: bool = True
    fa3_library: Path | None = None

    @property
    def num_points(self) -> int:
        """Points that will be measured, as far as they fit."""
        return len(self.heads) * (len(self.batches) * len(self.contexts) + len(self.prompts))


class KernelBench:
    """One run. Iterating gives the layers as they are done."""

    def __init__(self, options: KernelOptions, advance: Callable[[int], None]) -> None:
        self.options, self._advance = options, advance
        self.device = _device(options.device)
        self.dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        torch.manual_seed(0)
        self.dense, self.missing = dense_sides(self.device, options.fa3_library)
        self._nsa = load_nsa(self.device)
        self._rates = measure_rates(self.device, self.dtype)
        properties = torch.cuda.get_device_properties(self.device) if self._on_gpu else None
        self._l2_bytes = properties.L2_cache_size if properties and options.cold_cache else 0
        self._layers: list[Layer] = []

    @property
    def report(self) -> KernelReport:
        """Of the layers that are done."""
        names = ("compress_block", "compress_stride", "select_block", "num_selected", "window")
        return KernelReport(
            machine=this_machine(self.device),
            rates=self._rates,
            implementation=self._nsa.name,
            dtype=str(self.dtype).removeprefix("torch."),
            page_size=PAGE_SIZE,
            cold_cache=self._l2_bytes > 0,
            lengths={name: getattr(PAPER, name) for name in names},
            layers=list(self._layers),
        )

    @property
    def nsa_is_complete(self) -> bool:
        """Whether every point that is done has a right result of NSA."""
        points = [point for layer in self._layers for point in layer.decode + layer.prefill]
        sides = [side for point in points for side in (point.nsa, point.neighbours) if side]
        return all(side.us is not None for side in sides)

    def __iter__(self) -> Iterator[Layer]:
        for heads in self.options.heads:
            self._layers.append(self._layer(heads))
            yield self._layers[-1]

    @property
    def _on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @torch.inference_mode()
    def _layer(self, heads: HeadShape) -> Layer:
        room, options = self._room(heads), self.options
        steps = [
            (batch, context)
            for batch in options.batches
            for context in options.contexts
            if self._fits(batch * in_pages(context), room)
        ]
        prompts = [tokens for tokens in options.prompts if self._fits(in_pages(tokens), room)]
        sizes = [batch * in_pages(context) for batch, context in steps]
        num_tokens = max([0, *sizes, *map(in_pages, prompts)]) + self._spare(heads)
        pool = Pool.make(heads, num_tokens, self.dtype, self.device)
        decode = [self._decode(pool, batch, context) for batch, context in steps]
        return Layer(
            heads=str(heads),
            decode=decode,
            prefill=[self._prefill(pool, tokens) for tokens in prompts],
            crossovers=crossovers(decode),
        )

    def _fits(self, num_tokens: int, room: int) -> bool:
        """Whether a point can be measured; what cannot is counted as done."""
        if num_tokens > room:
            self._advance(1)
        return num_tokens <= room

    def _room(self, heads: HeadShape) -> int:
        """Tokens of the largest case that fits, its copy for torch included."""
        if not self._on_gpu:
            return 1 << 20
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info(self.device)
        return int(free * _MEMORY_SHARE / 2 / bytes_per_token(heads, self.dtype))

    def _spare(self, heads: HeadShape) -> int:
        """Tokens that more than fill the L2 cache."""
        return int(4 * self._l2_bytes / bytes_per_token(heads, self.dtype))

    def _decode(self, pool: Pool, batch: int, context: int) -> Point:
        heads, itemsize = pool.heads, self.dtype.itemsize
        work = decode_work(PAPER, heads, batch, context, itemsize)
        count = num_cold_tables(work.num_bytes, self._l2_bytes)
        case = decode_case(pool, batch, context, count)
        truth = DecodeTruth(case, PAPER)
        point = Point(
            batch=batch,
            context=context,
            floor_us=self._floor_us(work),
            dense_floor_us=self._floor_us(dense_decode_work(heads, batch, context, itemsize)),
            nsa=self._graphs(lambda: [self._nsa.decode_calls(case, PAPER)], truth.nsa_error),
            dense={
                name: self._graphs(partial(side.decode_ways, case), truth.dense_error)
                for name, side in self.dense.items()
            },
        )
        self._advance(1)
        return point

    def _prefill(self, pool: Pool, tokens: int) -> Point:
        heads, itemsize = pool.heads, self.dtype.itemsize
        case = prefill_case(pool, tokens)
        truth = PrefillTruth(case, PAPER)
        nsa, neighbours = (
            self._events(
                partial(self._nsa.prefill_call, case, q, PAPER), partial(truth.nsa_error, q)
            )
            for q in (case.q, case.alike)
        )
        point = Point(
            batch=1,
            context=tokens,
            floor_us=self._floor_us(prefill_work(PAPER, heads, tokens, itemsize)),
            dense_floor_us=self._floor_us(dense_prefill_work(heads, tokens, itemsize)),
            nsa=nsa,
            neighbours=neighbours,
            neighbour_overlap=truth.neighbour_overlap,
            dense={
                name: self._events(partial(side.prefill_call, case), truth.dense_error)
                for name, side in self.dense.items()
            },
        )
        self._advance(1)
        return point

    def _graphs(self, ways: Ways, error_of: ErrorOf) -> Side:
        def time(calls: Sequence[Run]) -> float:
            return graph_us(calls, self.device)

        return measured(ways, error_of, time, TOLERANCE[self.dtype])

    def _events(self, make: Callable[[], Run], error_of: ErrorOf) -> Side:
        def time(calls: Sequence[Run]) -> float:
            return call_us(calls[0], self.device)

        return measured(lambda: [[make()]], error_of, time, TOLERANCE[self.dtype])

    def _floor_us(self, work: Work) -> float:
        return work.seconds(self._rates.best_bytes, self._rates.matmul_flops) * 1e6


def measured(
    ways: Ways, error_of: ErrorOf, time: Callable[[Sequence[Run]], float], tolerance: float
) -> Side:
    """The fastest of the ways to call something, each checked before; whatever a library raises is
    why there is no time."""
    best, worst = math.inf, 0.0
    try:
        for calls in ways():
            error = error_of(calls[0]())
            if not error <= tolerance:
                return Side(error=error, skipped=f"wrong by {error:.2g}")
            best, worst = min(best, time(calls)), max(worst, error)
    except torch.OutOfMemoryError:
        return Side(skipped="out of memory")
    except Exception as error:
        text = " ".join(str(error).split())[:200]
        return Side(skipped=f"{type(error).__name__}: {text}")
    return Side(us=best, error=worst)


def crossovers(points: Sequence[Point]) -> list[Crossover]:
    """Of each batch that has both sides."""
    found = []
    for batch in dict.fromkeys(point.batch for point in points):
        both = [
            (point.context, point.nsa.us, point.best_dense[1])
            for point in points
            if point.batch == batch and point.nsa.us is not None and point.best_dense is not None
        ]
        if both:
            contexts, nsa, dense = zip(*sorted(both), strict=True)
            found.append(crossover(batch, contexts, nsa, dense))
    return found


def _device(name: str) -> torch.device:
    """Raises ConfigError if it cannot be measured on."""
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"bench kernels needs a GPU, and torch {torch.__version__} finds none that it can use"
        )
    return device

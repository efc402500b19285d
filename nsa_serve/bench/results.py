"""What a benchmark writes, as JSON."""

from pathlib import Path

import msgspec

from nsa_serve.bench.crossover import Crossover


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """Where, with what and when something was measured."""

    device: str
    driver: str
    python: str
    torch: str
    triton: str
    nsa_serve: str
    commit: str
    """Empty where there is no repository."""
    date: str


class Rates(msgspec.Struct, frozen=True, kw_only=True):
    """What the machine reached in the same run, per second."""

    copy_bytes: float
    """Read and written, both counted."""
    read_bytes: float
    matmul_flops: float
    """In the type of the measured attention."""

    @property
    def best_bytes(self) -> float:
        """The bandwidth that floors are computed with."""
        return max(self.copy_bytes, self.read_bytes)


class Side(msgspec.Struct, frozen=True, kw_only=True):
    """One implementation at one point, in microseconds, or why there is no time."""

    us: float | None = None
    error: float | None = None
    """Relative, over the rows that were checked, against plain torch in float32."""
    skipped: str = ""


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One layer of NSA and of dense attention over the same caches."""

    batch: int
    context: int
    """Tokens of each sequence; of a prefill, all of which are computed."""
    floor_us: float
    dense_floor_us: float
    nsa: Side
    neighbours: Side | None = None
    """Prefill: NSA where neighbouring queries are alike, as in text; they are otherwise drawn
    independently, which shares no work."""
    neighbour_overlap: float | None = None
    """Share of its blocks that such a query shares with the one before it."""
    dense: dict[str, Side] = {}

    @property
    def best_dense(self) -> tuple[str, float] | None:
        """The fastest dense side."""
        measured = [(side.us, name) for name, side in self.dense.items() if side.us is not None]
        if not measured:
            return None
        us, name = min(measured)
        return name, us

    @property
    def speedup(self) -> float | None:
        """The fastest dense time over NSA's."""
        if self.best_dense is None or self.nsa.us is None:
            return None
        return self.best_dense[1] / self.nsa.us


class Layer(msgspec.Struct, frozen=True, kw_only=True):
    """All points of one shape of heads."""

    heads: str
    """As `--heads` takes it."""
    decode: list[Point] = []
    prefill: list[Point] = []
    crossovers: list[Crossover] = []
    """Of decoding, one for each batch."""


class KernelReport(msgspec.Struct, frozen=True, kw_only=True):
    """What `bench kernels` measured."""

    machine: Machine
    rates: Rates
    implementation: str
    """`triton`, or `reference` for plain torch."""
    dtype: str
    page_size: int
    cold_cache: bool
    """Whether every call read pages that were not in the L2 cache."""
    lengths: dict[str, int]
    """l, d, l', n, w by their names in SparseSpec."""
    layers: list[Layer] = []


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """Milliseconds."""

    mean: float
    p50: float
    p90: float
    p99: float
    count: int


LEFT_OUT = "left out"
"""Why a point was skipped that nobody asked for."""


class LatencyPoint(msgspec.Struct, frozen=True, kw_only=True):
    """One batch that starts together; None where it did not fit."""

    batch: int
    input_len: int
    output_len: int
    first_token: Spread | None = None
    """From the start to each request's first token."""
    step: Spread | None = None
    """Between one token and the next, while all of the batch decode."""
    skipped: str = ""


class Throughput(msgspec.Struct, frozen=True, kw_only=True):
    """Many requests, as fast as the engine takes them."""

    num_prompts: int
    input_tokens: int
    output_tokens: int
    seconds: float

    @property
    def output_rate(self) -> float:
        """Output tokens per second."""
        return self.output_tokens / self.seconds

    @property
    def total_rate(self) -> float:
        """Prompt and output tokens per second."""
        return (self.input_tokens + self.output_tokens) / self.seconds


class EngineReport(msgspec.Struct, frozen=True, kw_only=True):
    """What `bench latency` or `bench throughput` measured."""

    machine: Machine
    model: str
    attention: str
    dtype: str
    start_seconds: float
    """From the start of the process until the engine could take requests."""
    kernels_cached: bool = True
    """Whether Triton had compiled kernels on this machine before; it keeps them on the disk."""
    peak_memory_bytes: int
    """Of the GPU's memory where the model runs on one, else of the process."""
    cache_tokens: int
    latency: list[LatencyPoint] = []
    throughput: Throughput | None = None


Report = KernelReport | EngineReport


def write_report(path: Path, report: Report) -> None:
    """Indented JSON; the folder is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")


def read_kernel_report(path: Path) -> KernelReport:
    """What `write_report` wrote."""
    return msgspec.json.decode(path.read_bytes(), type=KernelReport)


def read_engine_report(path: Path) -> EngineReport:
    """What `write_report` wrote."""
    return msgspec.json.decode(path.read_bytes(), type=EngineReport)

"""What a load test is asked to do: frozen data, checked where it is made."""

import math
from pathlib import Path
from typing import Any, Literal

import msgspec

from nsa_serve.errors import ConfigError, NsaServeError

DatasetName = Literal["random", "sharegpt", "jsonl", "needle"]
EndpointName = Literal["completions", "chat"]
RampUp = Literal["linear", "exponential"]
Metric = Literal["ttft", "tpot", "itl", "e2el"]
SweepOver = Literal["rate", "concurrency"]

METRICS: tuple[Metric, ...] = ("ttft", "tpot", "itl", "e2el")
MAX_SEED = 2**63 - 1


def _positive(name: str, value: float) -> None:
    if not value > 0:  # NaN fails too
        raise ConfigError(f"{name} must be positive, got {value:g}")


class TargetError(NsaServeError):
    """The target cannot be tested: not there, not this model, or it refuses every request."""


class TargetOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Whom to ask."""

    base_url: str = "http://127.0.0.1:8000"
    """With or without `/v1`."""
    endpoint: EndpointName = "completions"
    model: str | None = None
    """The first one of `/v1/models` unless given."""
    headers: dict[str, str] = {}
    api_key: str | None = None
    extra_body: dict[str, Any] = {}
    """Laid over every request's body."""
    ignore_eos: bool = False
    timeout: float = 3600.0
    """Seconds for one request, from sending to its end."""

    def __post_init__(self) -> None:
        if not self.base_url.startswith(("http://", "https://")):
            raise ConfigError(f"base_url must begin with http:// or https://: {self.base_url}")
        _positive("timeout", self.timeout)
        if self.extra_body.get("n", 1) != 1:
            raise ConfigError("extra_body: n must be 1, tokens are timed for one answer a request")
        if self.extra_body.get("stream", True) is not True:
            raise ConfigError("extra_body: stream must be true, else no token has a time")

    @property
    def root(self) -> str:
        """The address without `/v1` and slashes at its end."""
        return self.base_url.rstrip("/").removesuffix("/v1").rstrip("/")


class LoadShape(msgspec.Struct, frozen=True, kw_only=True):
    """When requests are sent."""

    request_rate: float = math.inf
    """Requests a second on average; inf sends all at once."""
    burstiness: float = 1.0
    """Shape of the gamma distribution of the gaps: 1 is a Poisson process, less comes in bursts,
    inf is a metronome."""
    max_concurrency: int | None = None
    """Requests in flight at most; others wait at the client."""
    ramp_up: RampUp | None = None
    ramp_up_start_rps: float = 1.0
    ramp_up_end_rps: float = 10.0

    def __post_init__(self) -> None:
        for name in ("request_rate", "burstiness", "ramp_up_start_rps", "ramp_up_end_rps"):
            _positive(name, getattr(self, name))
        if self.max_concurrency is not None:
            _positive("max_concurrency", self.max_concurrency)
        if self.ramp_up is not None and self.request_rate != math.inf:
            raise ConfigError("ramp_up and request_rate exclude each other")

    @property
    def is_open(self) -> bool:
        """Whether arrivals are planned, so that a slow server does not slow them."""
        return self.request_rate != math.inf or self.ramp_up is not None


class RandomData(msgspec.Struct, frozen=True, kw_only=True):
    """Prompts of random words."""

    input_len: int = 512
    output_len: int = 128
    range_ratio: float = 0.0
    """Lengths are uniform between (1 − ratio) and (1 + ratio) times the mean."""
    prefix_len: int = 0
    """Tokens that prompts share, on top of `input_len`."""
    num_prefixes: int = 1
    """Different shared prefixes, given to prompts at random."""
    vocab_size: int | None = None
    """Given: prompts are token ids below it, of exact lengths, and no text."""

    def __post_init__(self) -> None:
        for name in ("input_len", "output_len", "num_prefixes"):
            _positive(f"random {name}", getattr(self, name))
        if not 0.0 <= self.range_ratio < 1.0:
            raise ConfigError("random_range_ratio must be at least 0 and below 1")
        if self.prefix_len < 0:
            raise ConfigError("random_prefix_len must not be negative")
        if self.vocab_size is not None:
            _positive("vocab_size", self.vocab_size)

    @property
    def max_tokens(self) -> int:
        """Of a prompt and its answer at most."""
        longest = 1.0 + self.range_ratio
        return self.prefix_len + sum(int(longest * n) for n in (self.input_len, self.output_len))


class NeedleData(msgspec.Struct, frozen=True, kw_only=True):
    """Facts hidden in long texts, and questions about them."""

    lengths: tuple[int, ...] = (1024, 2048, 4096)
    """Tokens of a prompt."""
    depths: tuple[float, ...] = (0.0, 25.0, 50.0, 75.0, 100.0)
    """Where the fact stands: 0 at the beginning, 100 at the end of the text."""
    repeat: int = 1
    """Prompts of each length and depth, all different."""
    distractors: int = 0
    """Facts of the same form about something else, in each text."""
    haystack: Path | None = None
    """A text to take sentences from; made-up sentences unless given."""
    output_len: int = 32

    def __post_init__(self) -> None:
        if not self.lengths or not self.depths:
            raise ConfigError("needles need at least one length and one depth")
        for length in self.lengths:
            if length < 128:
                raise ConfigError(f"needle_lengths must be at least 128, got {length}")
        for depth in self.depths:
            if not 0.0 <= depth <= 100.0:
                raise ConfigError(f"needle_depths must be between 0 and 100, got {depth:g}")
        _positive("needle_repeat", self.repeat)
        _positive("needle_output_len", self.output_len)
        if self.distractors < 0:
            raise ConfigError("needle_distractors must not be negative")

    @property
    def num_prompts(self) -> int:
        """One for each length, depth and repetition."""
        return len(self.lengths) * len(self.depths) * self.repeat


class DataOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What requests ask."""

    dataset: DatasetName = "random"
    path: Path | None = None
    num_prompts: int = 100
    output_len: int | None = None
    """Over what a file says of the length of its answers."""
    tokenizer: Path | None = None
    """A model folder whose tokenizer sizes prompts; the target is asked for sizes otherwise."""
    random: RandomData = RandomData()
    needle: NeedleData = NeedleData()

    def __post_init__(self) -> None:
        _positive("num_prompts", self.num_prompts)
        if self.output_len is not None:
            _positive("output_len", self.output_len)
        reads = self.dataset in ("sharegpt", "jsonl")
        if reads and self.path is None:
            raise ConfigError(f"--dataset {self.dataset} needs --dataset-path")
        if not reads and self.path is not None:
            raise ConfigError(f"--dataset {self.dataset} reads no --dataset-path")


class Sweep(msgspec.Struct, frozen=True):
    """One load test after another, at each of these rates or concurrencies."""

    over: SweepOver
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise ConfigError("a sweep needs values, as in rate:1,2,4")
        for value in self.values:
            _positive(f"sweep {self.over}", value)
            if self.over == "concurrency" and value != int(value):
                raise ConfigError(f"a concurrency must be a whole number, got {value:g}")


class BenchOptions(msgspec.Struct, frozen=True, kw_only=True):
    """A whole run of `bench serve`."""

    target: TargetOptions = TargetOptions()
    data: DataOptions = DataOptions()
    load: LoadShape = LoadShape()
    sweep: Sweep | None = None
    num_warmups: int = 0
    seed: int | None = None
    """Drawn unless given, so that no run repeats the prompts of another."""
    goodput: dict[Metric, float] = {}
    """Milliseconds that a good request keeps within."""
    max_seconds: float | None = None
    """Requests that have not ended by then are cancelled."""

    def __post_init__(self) -> None:
        if self.num_warmups < 0:
            raise ConfigError("num_warmups must not be negative")
        if self.seed is not None and not 0 <= self.seed <= MAX_SEED:
            raise ConfigError(f"seed must be between 0 and {MAX_SEED}")
        if self.max_seconds is not None:
            _positive("max_seconds", self.max_seconds)
        if self.data.random.vocab_size is not None and self.target.endpoint == "chat":
            raise ConfigError("vocab_size makes prompts of token ids, which chat does not take")
        if self.sweep is not None and self.sweep.over == "rate" and self.load.ramp_up is not None:
            raise ConfigError("a sweep over rates and ramp_up exclude each other")

    def loads(self) -> list[LoadShape]:
        """The load of each point of the sweep; one without a sweep."""
        if self.sweep is None:
            return [self.load]
        if self.sweep.over == "rate":
            values = self.sweep.values
            return [msgspec.structs.replace(self.load, request_rate=value) for value in values]
        counts = map(int, self.sweep.values)
        return [msgspec.structs.replace(self.load, max_concurrency=count) for count in counts]

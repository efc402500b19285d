"""Live figures of an engine: gathered while somebody looks, and only then."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import msgspec

from nsa_api.engine import Engine
from nsa_api.errors import ApiError
from nsa_api.metrics import LastTokenTimes
from nsa_serve.engine.messages import EngineStats, StepOutputs
from nsa_serve.engine.watching import RequestProgress

if TYPE_CHECKING:
    from nsa_api.state import ServerState

MAX_STREAMS = 16
"""Live views that may be open at once."""
MAX_WATCHES = 8
"""Selections that may be waited for at once."""
_SHOWN_OF_ID = 17
"""Characters of a request's id that a holder of another key may see: the kind and eight digits."""


class LiveEngine(msgspec.Struct, frozen=True):
    """What is served."""

    model: str
    max_model_len: int
    num_pages: int
    page_size: int
    max_num_seqs: int
    device: str
    dtype: str
    attention: str


class Latency(msgspec.Struct, frozen=True):
    """Seconds, over what was seen since the last event; None where nothing was."""

    count: int
    mean: float | None = None
    p50: float | None = None
    p99: float | None = None


class LiveRequest(msgspec.Struct, frozen=True):
    """One continuation in flight."""

    id: str
    """Cut to its first characters where requests of several keys run."""
    index: int
    state: str
    """grammar (which is being compiled), waiting, prefill or decode"""
    age: float
    """Seconds since it arrived."""
    num_prompt_tokens: int
    num_cached_tokens: int
    num_computed_tokens: int
    num_generated_tokens: int
    num_pages: int
    num_preemptions: int


class LiveFigures(msgspec.Struct, frozen=True, kw_only=True):
    """One event of the live view."""

    object: str = "live"
    time: float
    state: str
    """ready, or why requests are not served"""
    interval: float
    """Seconds since the last event, over which the rates are."""
    engine: LiveEngine
    stats: EngineStats
    num_steps: int
    """Steps in the interval."""
    generation_tokens_per_second: float
    computed_tokens_per_second: float
    """Prompt tokens and generated ones, as steps computed them."""
    time_to_first_token_seconds: Latency
    inter_token_latency_seconds: Latency
    requests: list[LiveRequest] | None
    """None while the engine does not answer."""


class LiveView:
    """Hands out live figures and places to watch from."""

    def __init__(self, state: "ServerState", *, hide_ids: bool) -> None:
        self._state = state
        self._hide_ids = hide_ids
        self._num_streams = 0
        self._watching: set[str] = set()

    @contextmanager
    def looking(self, engine: Engine) -> Iterator["Window"]:
        """A window onto the engine's steps for as long as it is open."""
        if self._num_streams >= MAX_STREAMS:
            raise _too_many(f"{MAX_STREAMS} live views are open already")
        self._num_streams += 1
        window = Window(engine)
        engine.on_step.append(window.on_step)
        try:
            yield window
        finally:
            engine.on_step.remove(window.on_step)
            self._num_streams -= 1

    async def figures(self, engine: Engine, window: "Window") -> LiveFigures:
        """Of now, with the rates since the last call."""
        try:
            requests = self._requests(await engine.progress())
        except TimeoutError:
            requests = None
        return window.figures(self._state.not_ready() or "ready", requests)

    @contextmanager
    def watching(self, client: str) -> Iterator[None]:
        """A client's one place to watch a request from."""
        if client in self._watching or len(self._watching) >= MAX_WATCHES:
            raise _too_many("a selection is being waited for already")
        self._watching.add(client)
        try:
            yield
        finally:
            self._watching.remove(client)

    def _requests(self, found: Sequence[RequestProgress]) -> list[LiveRequest]:
        now = time.time()
        return [
            LiveRequest(
                id=each.request_id[:_SHOWN_OF_ID] if self._hide_ids else each.request_id,
                index=each.index,
                state=each.progress.stage,
                age=round(max(0.0, now - each.progress.arrived), 3),
                num_prompt_tokens=each.progress.num_prompt_tokens,
                num_cached_tokens=each.progress.num_cached_tokens,
                num_computed_tokens=each.progress.num_computed_tokens,
                num_generated_tokens=each.progress.num_output_tokens,
                num_pages=each.progress.num_pages,
                num_preemptions=each.progress.num_preemptions,
            )
            for each in found
        ]


class Window:
    """What one live view saw of the engine's steps since its last event."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._last_token = LastTokenTimes()
        self._began = time.monotonic()
        self._clear()

    def _clear(self) -> None:
        self._num_steps = self._generated = self._computed = 0
        self._first_token: list[float] = []
        self._inter_token: list[float] = []

    def on_step(self, step: StepOutputs) -> None:
        """Take in a step."""
        self._num_steps += step.stats.step_tokens > 0
        self._computed += step.stats.step_tokens
        for output in step.outputs:
            self._generated += len(output.new_token_ids)
            times = output.times
            # The last output has times too: a first token is the one that came just now.
            if times and output.new_token_ids and times.first_token == times.last_token:
                self._first_token.append(times.first_token - times.arrived)
        self._inter_token += self._last_token.gaps(step, time.monotonic())

    def figures(self, state: str, requests: list[LiveRequest] | None) -> LiveFigures:
        """Of the interval that ends now; the next one begins."""
        now = time.monotonic()
        interval, self._began = max(now - self._began, 1e-9), now
        info = self._engine.info
        found = LiveFigures(
            time=time.time(),
            state=state,
            interval=interval,
            engine=LiveEngine(
                model=info.model_name,
                max_model_len=info.max_model_len,
                num_pages=info.num_pages,
                page_size=info.page_size,
                max_num_seqs=info.max_num_seqs,
                device=info.device,
                dtype=info.dtype,
                attention=info.attention,
            ),
            stats=self._engine.stats,
            num_steps=self._num_steps,
            generation_tokens_per_second=self._generated / interval,
            computed_tokens_per_second=self._computed / interval,
            time_to_first_token_seconds=_latency(self._first_token),
            inter_token_latency_seconds=_latency(self._inter_token),
            requests=requests,
        )
        self._clear()
        return found


def _latency(seconds: list[float]) -> Latency:
    if not seconds:
        return Latency(0)
    ordered = sorted(seconds)
    return Latency(
        len(ordered),
        sum(ordered) / len(ordered),
        ordered[(len(ordered) - 1) // 2],
        ordered[(len(ordered) - 1) * 99 // 100],
    )


def _too_many(text: str) -> ApiError:
    return ApiError(429, text, code="too_many_watchers", headers={"Retry-After": "1"})

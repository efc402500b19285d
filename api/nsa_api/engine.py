"""What the HTTP API asks of an engine: the part of `nsa_serve.AsyncEngine` that it uses."""

from collections.abc import AsyncGenerator, Callable
from typing import Protocol

from nsa_serve.engine.messages import EngineStats, Ready, Selection, StepOutputs
from nsa_serve.engine.prompts import Prompt
from nsa_serve.engine.watching import RequestProgress
from nsa_serve.model.loading.folder import GenerationDefaults
from nsa_serve.outputs import RequestOutput
from nsa_serve.params import SamplingParams
from nsa_serve.text.tokenizer import Tokenizer


class Engine(Protocol):
    """Continues prompts; leaving an iterator, or cancelling a call, aborts and frees."""

    on_step: list[Callable[[StepOutputs], None]]
    num_restarts: int
    """Starts of the engine process after the first."""

    @property
    def info(self) -> Ready: ...

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def generation(self) -> GenerationDefaults: ...

    @property
    def stats(self) -> EngineStats: ...

    @property
    def last_step_time(self) -> float:
        """On the monotonic clock."""

    @property
    def alive(self) -> bool: ...

    def check_room(self, num_coming: int) -> None:
        """Raise QueueFullError if one more request has no place beside `num_coming` others that
        are about to ask for theirs."""

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams,
        *,
        request_id: str,
        priority: int = 0,
        salt: bytes = b"",
    ) -> AsyncGenerator[RequestOutput, None]:
        """What is new with each step; the first item comes with the first token."""

    async def generate(
        self,
        prompt: Prompt,
        params: SamplingParams,
        *,
        request_id: str,
        priority: int = 0,
        salt: bytes = b"",
    ) -> RequestOutput:
        """The whole output."""

    async def abort(self, request_id: str) -> None:
        """End a request now, with finish reason abort; an unknown id is no error."""

    async def progress(self) -> list[RequestProgress]:
        """How far each continuation in flight is; raises TimeoutError if the engine is stuck."""

    async def selection(self, request_id: str, *, seconds: float) -> Selection | None:
        """What each layer selects at a request's next decode step; None if it is not in flight.
        Raises TimeoutError if it does not decode within `seconds`."""

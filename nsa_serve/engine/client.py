"""The engine as asyncio code uses it: the core runs in a process of its own. Imports no torch."""

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import cache, partial
from typing import Self

from nsa_serve.config import DEFAULT_NUM_SEQS, EngineConfig
from nsa_serve.engine.connection import EngineConnection
from nsa_serve.engine.in_flight import Delivery, InFlight
from nsa_serve.engine.load import load_text
from nsa_serve.engine.messages import (
    AbortSequences,
    EngineStats,
    Ready,
    Selection,
    StepOutputs,
    ToCore,
)
from nsa_serve.engine.prompts import (
    ChatPrompt,
    Prompt,
    check_structured,
    encode_prompt,
    prepare_params,
)
from nsa_serve.engine.request import Request
from nsa_serve.engine.stacks import process_state
from nsa_serve.engine.watching import RequestProgress, Watching
from nsa_serve.errors import EngineDeadError, NsaServeError
from nsa_serve.model.loading.generation import GenerationDefaults
from nsa_serve.outputs import RequestOutput
from nsa_serve.params import SamplingParams
from nsa_serve.structured.check import GrammarChecker
from nsa_serve.structured.threads import grammar_threads
from nsa_serve.text.tokenizer import Tokenizer

__all__ = ["AsyncEngine", "ChatPrompt", "Prompt"]

logger = logging.getLogger(__name__)

_DRAIN_POLL_SECONDS = 0.01
_MAX_SECONDS_TO_RESTART = 30.0
_SECONDS_ALIVE_TO_FORGIVE = 60.0


class AsyncEngine:
    """Continues prompts, many at once. Belongs to the event loop that started it.

    If the engine process ends, every request in flight raises EngineDeadError and the process is
    started anew: at once, and if it dies again within a minute after 1, 2, 4 … 30 seconds.
    """

    info: Ready
    """What the engine process said when it was ready."""

    def __init__(
        self, config: EngineConfig, tokenizer: Tokenizer, generation: GenerationDefaults
    ) -> None:
        """Without an engine process yet; `start` is what users call."""
        self.tokenizer = tokenizer
        self.generation = generation
        self.stats = EngineStats()
        """Figures after the last step."""
        self.last_step_time = time.monotonic()
        """When the last step's outputs came, on the monotonic clock."""
        self.on_step: list[Callable[[StepOutputs], None]] = []
        """Called with all that each step gave."""
        self.alive = False
        """Whether the engine process runs and has loaded."""
        self.num_restarts = 0
        """Starts of the engine process after it died."""
        self._config = config
        self._in_flight = InFlight(
            config.max_num_seqs or DEFAULT_NUM_SEQS, config.max_num_queued_reqs
        )
        self._watching = Watching(self._in_flight, self._send)
        self._sequence_ids = itertools.count()
        self._grammar_checker = cache(GrammarChecker)
        # One thread: what hostile grammars cost is taken from other grammars, not from the loop.
        self._grammar_thread = grammar_threads(1)
        self._restart: asyncio.Task[None] | None = None
        self._seconds_to_restart = 0.0
        self._closing = False

    @classmethod
    async def start(cls, config: EngineConfig) -> Self:
        """Start the engine process and wait until the model is loaded.

        Raises ConfigError, with one line that says why, if it cannot be.
        """
        connection = EngineConnection()
        try:
            # A model that must be fetched is fetched here, before the process looks for it.
            text = await asyncio.to_thread(load_text, config)
        except BaseException:
            await connection.close()
            raise
        engine = cls(config, *text)
        await engine._attach(connection)
        return engine

    @property
    def num_unfinished(self) -> int:
        """Continuations, running and queued, that are not complete."""
        return self._in_flight.num_unfinished

    @property
    def pid(self) -> int:
        """Process id of the engine process."""
        return self._connection.pid

    def check_room(self, num_coming: int) -> None:
        """Raise QueueFullError if one more request has no place beside `num_coming` others that
        are about to ask for theirs."""
        self._in_flight.check_room(1, num_coming)

    async def stream(
        self,
        prompt: Prompt,
        params: SamplingParams,
        *,
        request_id: str,
        priority: int = 0,
        salt: bytes = b"",
    ) -> AsyncGenerator[RequestOutput, None]:
        """What is new, as it comes: `outputs` holds only continuations with something new.

        The first item comes with the first token. Leaving the iterator aborts the request. Raises
        RequestError (QueueFullError, ContextLengthError) before the first item, GenerationError or
        EngineDeadError at any time.
        """
        async with self._submitted(prompt, params, request_id, priority, salt) as delivery:
            finished = False
            while not finished:
                output = await delivery.take()
                finished = delivery.finished
                yield output

    async def generate(
        self,
        prompt: Prompt,
        params: SamplingParams,
        *,
        request_id: str,
        priority: int = 0,
        salt: bytes = b"",
    ) -> RequestOutput:
        """The whole output; raises as `stream` does. Cancelling the call aborts the request."""
        async with self._submitted(prompt, params, request_id, priority, salt) as delivery:
            return await delivery.take_whole()

    def ask_for_stacks(self) -> None:
        """Let the engine process write down where its threads stand, for `read_stacks`."""
        if self.alive:
            self._connection.ask_for_stacks()

    def read_stacks(self) -> str:
        """What it wrote since the last call."""
        return self._connection.read_stacks() if self.alive else ""

    def process_state(self) -> str:
        """What the system says of the engine process: running, sleeping, stopped, gone …"""
        return process_state(self.pid)

    async def abort(self, request_id: str) -> None:
        """End a request now, with finish reason abort; an unknown id is no error."""
        self._stop(self._in_flight.abort(request_id))

    async def progress(self) -> list[RequestProgress]:
        """How far each continuation in flight is; TimeoutError in the midst of a long step."""
        return await self._watching.progress()

    async def selection(self, request_id: str, *, seconds: float) -> Selection | None:
        """What each layer selects at the next decode step of a request, of its first unfinished
        continuation. None if no request of this id is in flight; raises TimeoutError if it does
        not decode within `seconds`."""
        return await self._watching.selection(request_id, seconds)

    async def shutdown(self, timeout: float = 0.0) -> None:
        """Take no new request, let others finish for `timeout` seconds, abort the rest, and end."""
        self._closing = True
        if self._restart is not None:
            self._restart.cancel()
            await asyncio.gather(self._restart, return_exceptions=True)
        deadline = time.monotonic() + timeout
        while self.num_unfinished and time.monotonic() < deadline:
            await asyncio.sleep(_DRAIN_POLL_SECONDS)
        self._stop(self._in_flight.abort_all())
        self.alive = False
        await self._connection.close()

    @asynccontextmanager
    async def _submitted(
        self, prompt: Prompt, params: SamplingParams, request_id: str, priority: int, salt: bytes
    ) -> AsyncIterator[Delivery]:
        arrived = time.time()
        self._require_alive()
        delivery = self._in_flight.reserve(request_id, params.n)
        try:
            if params.structured_outputs is not None:
                check = partial(check_structured, params, self.info, self._grammar_checker)
                await asyncio.get_running_loop().run_in_executor(self._grammar_thread, check)
            token_ids = await self._encode(prompt, params.truncate_prompt_tokens)
            self._require_alive()
            params = prepare_params(params, len(token_ids), self.tokenizer, self.info)
            request = Request(
                request_id,
                prompt if isinstance(prompt, str) else None,
                token_ids,
                params,
                self.tokenizer,
                sequence_ids=list(itertools.islice(self._sequence_ids, params.n)),
            )
            if self._in_flight.submit(delivery, request):
                for message in request.messages(priority=priority, salt=salt, arrived=arrived):
                    self._connection.send(message)
            yield delivery
        finally:
            self._stop(self._in_flight.release(delivery))

    async def _encode(self, prompt: Prompt, truncate_to: int | None) -> list[int]:
        encode = partial(encode_prompt, prompt, self.tokenizer, self.info, truncate_to)
        return encode() if isinstance(prompt, list) else await asyncio.to_thread(encode)

    def _require_alive(self) -> None:
        if self._closing:
            raise EngineDeadError("the engine is shutting down")
        if not self.alive:
            raise EngineDeadError("the engine process is gone; it is being started anew")

    def _send(self, message: ToCore) -> None:
        if self.alive:
            self._connection.send(message)

    def _stop(self, sequence_ids: list[int]) -> None:
        if sequence_ids and self.alive:
            self._connection.send(AbortSequences(sequence_ids))

    def _receive(self, step: StepOutputs) -> None:
        self.last_step_time = time.monotonic()
        self.stats = step.stats
        self._stop(self._in_flight.push(step.outputs))
        self._watching.push(step)
        for callback in self.on_step:
            try:
                callback(step)
            except Exception:
                logger.exception("a callback of the engine's steps failed")

    async def _attach(self, connection: EngineConnection) -> None:
        try:
            self.info = await connection.load(self._config, self._receive, self._lost)
        except BaseException:
            await connection.close()
            raise
        self._in_flight.num_seqs = self.info.max_num_seqs
        self._connection = connection
        self._attached_time = time.monotonic()
        self.alive = True

    def _lost(self) -> None:
        self.alive = False
        self.stats = EngineStats()
        self._in_flight.fail_all(EngineDeadError, "the engine process ended")
        self._watching.forget()
        if not self._closing:
            logger.error("the engine process ended; starting it anew")
            self._restart = asyncio.create_task(self._start_anew())

    async def _start_anew(self) -> None:
        if time.monotonic() - self._attached_time > _SECONDS_ALIVE_TO_FORGIVE:
            self._seconds_to_restart = 0.0
        await self._connection.close()
        while not self.alive:
            await asyncio.sleep(self._seconds_to_restart)
            self._seconds_to_restart = min(
                max(1.0, 2 * self._seconds_to_restart), _MAX_SECONDS_TO_RESTART
            )
            try:
                await self._attach(EngineConnection())
                self.num_restarts += 1
            except (NsaServeError, OSError) as error:
                logger.error("the engine did not start: %s", error)

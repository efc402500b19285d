"""An engine without a process: its output is known, and it fails and waits when told to."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable

from nsa_serve.engine.messages import EngineStats, Ready, Selection, StepOutputs
from nsa_serve.engine.prompts import Prompt, check_structured, encode_prompt
from nsa_serve.engine.watching import RequestProgress
from nsa_serve.model.loading.folder import GenerationDefaults
from nsa_serve.outputs import (
    CompletionOutput,
    FinishReason,
    Logprob,
    RequestOutput,
    RequestTimes,
    TokenLogprobs,
)
from nsa_serve.params import SamplingParams
from nsa_serve.structured.check import GrammarChecker
from nsa_serve.text.tokenizer import Tokenizer

TEXT = "The quick brown fox"


class FakeEngine:
    """Answers every prompt with `text`, over and over, one byte a token."""

    def __init__(self) -> None:
        self.tokenizer = Tokenizer.byte_level()
        self.generation = GenerationDefaults()
        self.info = Ready(
            model_name="fake",
            max_model_len=1000,
            vocab_size=self.tokenizer.vocab_size,
            eos_token_ids=[256, 258],
            num_pages=100,
            page_size=16,
            device="cpu",
            dtype="float32",
            attention="nsa",
            report="",
            max_num_seqs=64,
            cache_bytes=4096,
            compressed_cache_bytes=1024,
        )
        self.stats = EngineStats()
        self.last_step_time = time.monotonic()
        self.alive = True
        self.num_restarts = 0
        self.on_step: list[Callable[[StepOutputs], None]] = []
        self.text = TEXT
        self.ends = False
        """Whether it says `text` once and ends by itself."""
        self.calls: list[tuple[Prompt, SamplingParams, bytes]] = []
        self.running: set[str] = set()
        self.failure: Exception | None = None
        self.fail_after = 0
        """Tokens given before `failure` is raised."""
        self.hold_after: int | None = None
        """Tokens given before it waits for ever."""
        self.in_flight: list[RequestProgress] = []
        self.selections: dict[str, Selection] = {}
        """What is selected, by request."""

    def check_room(self, num_coming: int) -> None:
        """There is always room."""

    async def stream(
        self,
        prompt: Prompt,
        params: SamplingParams,
        *,
        request_id: str,
        priority: int = 0,
        salt: bytes = b"",
    ) -> AsyncGenerator[RequestOutput, None]:
        """One token a step for each continuation."""
        check_structured(params, self.info, GrammarChecker)
        self.calls.append((prompt, params, salt))
        self.running.add(request_id)
        try:
            token_ids = encode_prompt(
                prompt, self.tokenizer, self.info, params.truncate_prompt_tokens
            )
            num_tokens = self._num_tokens(params, token_ids)
            for position in range(num_tokens):
                await self._pass(position)
                yield self._output(request_id, token_ids, params, range(position, position + 1))
        finally:
            self.running.discard(request_id)

    async def generate(
        self,
        prompt: Prompt,
        params: SamplingParams,
        *,
        request_id: str,
        priority: int = 0,
        salt: bytes = b"",
    ) -> RequestOutput:
        """All tokens at once."""
        whole: RequestOutput | None = None
        stream = self.stream(prompt, params, request_id=request_id, priority=priority, salt=salt)
        async for output in stream:
            whole = output
        assert whole is not None
        num_tokens = self._num_tokens(params, whole.prompt_token_ids)
        return self._output(request_id, whole.prompt_token_ids, params, range(num_tokens))

    async def abort(self, request_id: str) -> None:
        """Nothing ends but by itself."""

    async def progress(self) -> list[RequestProgress]:
        """Whatever `in_flight` holds."""
        return self.in_flight

    async def selection(self, request_id: str, *, seconds: float) -> Selection | None:
        """Whatever `selections` holds."""
        return self.selections.get(request_id)

    def _num_tokens(self, params: SamplingParams, prompt_ids: list[int]) -> int:
        if self.ends:
            return len(self.text)
        return params.max_tokens or self.info.max_model_len - len(prompt_ids)

    @property
    def _reason(self) -> FinishReason:
        return "stop" if self.ends else "length"

    async def _pass(self, position: int) -> None:
        await asyncio.sleep(0)
        if self.failure is not None and position >= self.fail_after:
            raise self.failure
        if self.hold_after is not None and position >= self.hold_after:
            await asyncio.Event().wait()

    def _output(
        self, request_id: str, prompt_ids: list[int], params: SamplingParams, positions: range
    ) -> RequestOutput:
        last = self._num_tokens(params, prompt_ids) - 1
        text = "".join(self.text[position % len(self.text)] for position in positions)
        token_ids = self.tokenizer.encode(text)
        outputs = [
            CompletionOutput(
                index=index,
                text=text,
                token_ids=token_ids,
                logprobs=None if params.logprobs is None else [_logprobs(i) for i in token_ids],
                finish_reason=self._reason if last in positions else None,
            )
            for index in range(params.n)
        ]
        return RequestOutput(
            request_id=request_id,
            prompt=None,
            prompt_token_ids=prompt_ids,
            outputs=outputs,
            num_cached_tokens=1,
            times=RequestTimes(arrived=1.0, first_scheduled=1.5, first_token=2.0, last_token=3.0),
        )


def _logprobs(token_id: int) -> TokenLogprobs:
    chosen = Logprob(token_id, -0.5, 1)
    return TokenLogprobs(chosen, [chosen, Logprob(token_id + 1, float("-inf"), 2)])

"""Offline generation: the core in the caller's own process, with vLLM's names."""

import itertools
import logging
import time
from collections import deque
from collections.abc import Sequence
from functools import cache
from typing import Any

import msgspec

from nsa_serve.config import EngineConfig
from nsa_serve.engine.core import EngineCore
from nsa_serve.engine.load import load_runner, load_text
from nsa_serve.engine.messages import Ready, SequenceOutput
from nsa_serve.engine.progress import ProgressBar
from nsa_serve.engine.prompts import (
    ChatPrompt,
    Prompt,
    check_structured,
    default_params,
    encode_prompt,
    prepare_params,
)
from nsa_serve.engine.request import Request
from nsa_serve.errors import ConfigError, GenerationError
from nsa_serve.outputs import RequestOutput
from nsa_serve.params import SamplingParams
from nsa_serve.structured.check import GrammarChecker

logger = logging.getLogger(__name__)

Conversation = list[dict[str, Any]]


class LLM:
    """A model that continues many prompts at once.

    Takes every field of `EngineConfig`; raises ConfigError, with one line that says why, if the
    model cannot be served so.
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        attention: str = "auto",
        dtype: str = "auto",
        device: str = "auto",
        max_model_len: int | None = None,
        **engine_options: Any,
    ) -> None:
        config = _config(
            model=model,
            attention=attention,
            dtype=dtype,
            device=device,
            max_model_len=max_model_len,
            **engine_options,
        )
        self.tokenizer, self.generation = load_text(config)
        self._config = config
        self._core = EngineCore(config, load_runner(config))
        self.info: Ready = self._core.ready
        self._sequence_ids = itertools.count()
        self._request_ids = itertools.count()
        self._grammar_checker = cache(GrammarChecker)

    def generate(
        self,
        prompts: str | list[int] | Sequence[str | list[int]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Continue texts or lists of token ids; the outputs are in the order of the prompts.

        Without `sampling_params` the model's own defaults hold. Raises RequestError, before
        anything is computed, if a prompt cannot be continued; a prompt that fails later has the
        finish reason error. `use_tqdm` shows a progress bar, on a terminal, after a second.
        """
        return self._generate(_as_list(prompts), sampling_params, use_tqdm)

    def chat(
        self,
        messages: Conversation | Sequence[Conversation],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Answer one conversation or several, in OpenAI's message format; as `generate`."""
        prompts = [ChatPrompt(conversation) for conversation in _as_conversations(messages)]
        return self._generate(prompts, sampling_params, use_tqdm)

    def score(self, token_ids: list[int]) -> list[float]:
        """Natural log of the probability of every token after the first, given those before it."""
        params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0)
        (output,) = self._generate([token_ids], params, False)
        if output.prompt_logprobs is None:
            raise GenerationError("the tokens could not be scored")
        return [place.chosen.logprob for place in output.prompt_logprobs if place is not None]

    def _generate(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None,
        show_progress: bool,
    ) -> list[RequestOutput]:
        if params is None:
            params = default_params(self.generation)
        if isinstance(params, SamplingParams):
            params = [params] * len(prompts)
        requests = [self._request(*pair) for pair in zip(prompts, params, strict=True)]
        with ProgressBar("Generating", len(requests), enabled=show_progress) as bar:
            self._run(requests, bar)
        return [request.take() for request in requests]

    def _request(self, prompt: Prompt, params: SamplingParams) -> Request:
        check_structured(params, self.info, self._grammar_checker)
        truncate_to = params.truncate_prompt_tokens
        token_ids = encode_prompt(prompt, self.tokenizer, self.info, truncate_to)
        return Request(
            str(next(self._request_ids)),
            prompt if isinstance(prompt, str) else None,
            token_ids,
            prepare_params(params, len(token_ids), self.tokenizer, self.info),
            self.tokenizer,
            sequence_ids=list(itertools.islice(self._sequence_ids, params.n)),
        )

    def _run(self, requests: Sequence[Request], bar: ProgressBar) -> None:
        """Keep the core supplied until all are finished."""
        waiting = deque(requests)
        running: dict[int, Request] = {}
        try:
            while waiting or running:
                while waiting and len(running) < self.info.max_num_seqs:
                    self._submit(waiting.popleft(), running)
                for output in self._core.step().outputs:
                    self._push(output, running, bar)
        finally:
            self._core.abort(running)

    def _submit(self, request: Request, running: dict[int, Request]) -> None:
        for message in request.messages(priority=0, salt=b"", arrived=time.time()):
            self._core.add(message)
            running[message.sequence_id] = request

    def _push(self, output: SequenceOutput, running: dict[int, Request], bar: ProgressBar) -> None:
        request = running[output.sequence_id]
        if not request.push(output):
            return
        del running[output.sequence_id]
        self._core.abort([output.sequence_id])  # of no effect unless a stop string ended it
        if output.error is not None:
            logger.warning("request %s failed: %s", request.request_id, output.error)
        if request.finished:
            bar.advance(1)


def _config(**options: Any) -> EngineConfig:
    try:
        return msgspec.convert(options, EngineConfig)
    except msgspec.ValidationError as error:
        raise ConfigError(str(error)) from None


def _as_list(prompts: str | list[int] | Sequence[str | list[int]]) -> list[str | list[int]]:
    if isinstance(prompts, str):
        return [prompts]
    token_ids = [prompt for prompt in prompts if isinstance(prompt, int)]
    if token_ids:
        return [token_ids]
    return [prompt for prompt in prompts if not isinstance(prompt, int)]


def _as_conversations(messages: Conversation | Sequence[Conversation]) -> list[Conversation]:
    one = [message for message in messages if isinstance(message, dict)]
    return [one] if one else [message for message in messages if not isinstance(message, dict)]

"""POST /v1/completions."""

import time
import uuid
from collections import defaultdict
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from functools import partial

from fastapi import APIRouter, Request
from msgspec import UNSET
from starlette.responses import Response

from nsa_api.deadline import Deadline
from nsa_api.engine import Engine
from nsa_api.errors import bad_request
from nsa_api.generation import Generation
from nsa_api.logprobs import completion_logprobs, prompt_logprobs
from nsa_api.openapi import documented
from nsa_api.responses import Completion, CompletionChoice, CompletionLogprobs
from nsa_api.routes.common import (
    built,
    chunk_encoder,
    continuous_usage,
    include_usage,
    json_response,
    run_whole,
    salt_of,
    worth_sending,
)
from nsa_api.routes.generating import GeneratingRoute
from nsa_api.schemas import CompletionRequest
from nsa_api.sse import EventStream
from nsa_api.state import ServerState, server_state
from nsa_api.structured import structured_outputs
from nsa_api.tally import Tally
from nsa_api.validation import (
    check_token_ids,
    check_work,
    ignored_header,
    sampling_params,
)
from nsa_serve.engine.prompts import Prompt
from nsa_serve.outputs import CompletionOutput, RequestOutput, TokenLogprobs

DEFAULT_MAX_TOKENS = 16

router = APIRouter(route_class=GeneratingRoute)


@router.post("/v1/completions", responses=documented(Completion, chunk=Completion))
async def create_completion(body: CompletionRequest, request: Request) -> Response:
    """Continue one prompt or several."""
    state = server_state(request)
    engine = state.engine()
    state.check_model(body.model)
    headers = ignored_header(body)
    answer = CompletionAnswer(body, _generation(body, request, state, engine), engine)
    if body.stream:
        return EventStream(answer.frames(state), headers)
    return json_response(await answer.whole(request, state), headers)


def _generation(
    body: CompletionRequest, request: Request, state: ServerState, engine: Engine
) -> Generation:
    prompts = _prompts(body)
    check_token_ids("prompt", (p for p in prompts if isinstance(p, list)), engine)
    _check_echo(body)
    max_tokens = DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
    params = sampling_params(
        body,
        engine,
        max_tokens=max_tokens,
        logprobs=body.logprobs,
        prompt_logprobs=_prompt_logprobs(body),
        structured=structured_outputs(body),
    )
    check_work(prompts, params, engine, state.settings, echo=bool(body.echo))
    request_id = f"cmpl-{uuid.uuid4().hex}"
    return Generation(
        request_id,
        prompts,
        params,
        body.priority,
        salt_of(request, body),
        Deadline.of(request, state.settings),
        prompt_only=max_tokens == 0,
    )


def _prompts(body: CompletionRequest) -> list[Prompt]:
    prompt = body.prompt
    if isinstance(prompt, str) or isinstance(prompt[0], int):
        return [prompt]
    return list(prompt)


def _check_echo(body: CompletionRequest) -> None:
    if body.max_tokens == 0 and not body.echo:
        raise bad_request("max_tokens must be at least 1 without echo", "max_tokens")
    if body.echo and body.stream and body.logprobs is not None:
        raise bad_request("echo cannot be streamed with logprobs", "echo")


def _prompt_logprobs(body: CompletionRequest) -> int | None:
    """How many the engine is to tell: for `prompt_logprobs`, and for `logprobs` of an echo."""
    asked = [body.prompt_logprobs, body.logprobs if body.echo else None]
    return max((number for number in asked if number is not None), default=None)


@dataclass(slots=True)
class CompletionAnswer:
    """Turns outputs into the answer of one request."""

    body: CompletionRequest
    generation: Generation
    engine: Engine
    created: int = field(default_factory=lambda: int(time.time()))
    _offsets: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    """Length of the token texts so far of each choice, for its logprobs."""

    async def whole(self, request: Request, state: ServerState) -> Completion:
        """The answer in one piece."""
        tally = self.generation.tally()
        outputs = await run_whole(request, state, self.engine, self.generation, tally)
        return await built(self.generation, partial(self._completion, outputs, tally))

    def _completion(self, outputs: list[RequestOutput], tally: Tally) -> Completion:
        return Completion(
            id=self.generation.request_id,
            created=self.created,
            model=self.body.model,
            choices=[
                self._choice(i, completion, output)
                for i, output in enumerate(outputs)
                for completion in output.outputs
            ],
            usage=tally.usage(),
        )

    async def frames(self, state: ServerState) -> AsyncGenerator[bytes, None]:
        """The answer as events."""
        tally = self.generation.tally()
        encoder = chunk_encoder(self.generation, "text_completion", self.created, self.body)
        continuous = continuous_usage(self.body)
        begun: set[tuple[int, int]] = set()
        with state.serving(tally):
            async for i, output in self.generation.stream(self.engine, tally):
                for completion in output.outputs:
                    place = i, completion.index
                    first = place not in begun
                    has_content = bool(completion.text or (first and self.body.echo))
                    if not worth_sending(completion, self.body, has_content=has_content):
                        continue
                    choice = self._choice(i, completion, output if first else None)
                    begun.add(place)
                    yield encoder.chunk([choice], tally.usage() if continuous else None)
        if include_usage(self.body):
            yield encoder.chunk([], tally.usage())

    def _choice(
        self, i: int, completion: CompletionOutput, prompt: RequestOutput | None
    ) -> CompletionChoice:
        """With what was asked about the prompt, if `prompt` is given."""
        body, tokenizer = self.body, self.engine.tokenizer
        index = i * self.generation.params.n + completion.index
        with_ids = bool(body.return_token_ids)
        echoed = prompt if body.echo else None
        return CompletionChoice(
            index=index,
            text=self._prompt_text(echoed) + completion.text if echoed else completion.text,
            logprobs=self._logprobs(index, completion, echoed),
            finish_reason=completion.finish_reason,
            stop_reason=completion.stop_reason,
            prompt_logprobs=prompt_logprobs(tokenizer, prompt, body.prompt_logprobs)
            if prompt
            else UNSET,
            prompt_token_ids=prompt.prompt_token_ids if prompt and with_ids else UNSET,
            token_ids=completion.token_ids if with_ids else UNSET,
        )

    def _prompt_text(self, output: RequestOutput) -> str:
        """As it was given, if it was a text and all of it was read."""
        if output.prompt is not None and self.body.truncate_prompt_tokens is None:
            return output.prompt
        skip = self.body.skip_special_tokens
        return self.engine.tokenizer.decode(output.prompt_token_ids, skip_special_tokens=skip)

    def _logprobs(
        self, index: int, completion: CompletionOutput, echoed: RequestOutput | None
    ) -> CompletionLogprobs | None:
        if completion.logprobs is None or self.body.logprobs is None:
            return None
        places: list[TokenLogprobs | None] = list(completion.logprobs)
        token_ids = [place.chosen.token_id for place in completion.logprobs]
        if echoed and echoed.prompt_logprobs is not None:
            places = echoed.prompt_logprobs + places
            token_ids = echoed.prompt_token_ids + token_ids
        result = completion_logprobs(
            self.engine.tokenizer,
            token_ids,
            places,
            num_top=self.body.logprobs,
            offset=self._offsets[index],
        )
        self._offsets[index] += sum(map(len, result.tokens))
        return result

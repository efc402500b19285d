"""POST /v1/chat/completions."""

import time
import uuid
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, field
from functools import partial

from fastapi import APIRouter, Request
from msgspec import UNSET
from starlette.responses import Response

from nsa_api.answers import AnswerReader, says_something
from nsa_api.deadline import Deadline
from nsa_api.engine import Engine
from nsa_api.errors import bad_request
from nsa_api.generation import Generation
from nsa_api.logprobs import chat_logprobs, prompt_logprobs
from nsa_api.openapi import documented
from nsa_api.responses import (
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatDelta,
    ChatLogprobs,
    Usage,
)
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
from nsa_api.schemas import ChatCompletionRequest
from nsa_api.sse import ChunkEncoder, EventStream
from nsa_api.state import ServerState, server_state
from nsa_api.structured import structured_outputs
from nsa_api.tally import Tally
from nsa_api.tools import Offer, offer
from nsa_api.validation import check_work, ignored_header, sampling_params
from nsa_serve.engine.prompts import ChatPrompt
from nsa_serve.outputs import CompletionOutput, RequestOutput

router = APIRouter(route_class=GeneratingRoute)


@router.post(
    "/v1/chat/completions", responses=documented(ChatCompletion, chunk=ChatCompletionChunk)
)
async def create_chat_completion(body: ChatCompletionRequest, request: Request) -> Response:
    """Continue a conversation."""
    state = server_state(request)
    engine = state.engine()
    state.check_model(body.model)
    headers = ignored_header(body)
    offered = offer(body, structured_outputs(body))
    generation = _generation(body, request, state, engine, offered)
    answer = ChatAnswer(body, generation, engine, offered.names)
    if body.stream:
        return EventStream(answer.frames(state), headers)
    return json_response(await answer.whole(request, state), headers)


def _generation(
    body: ChatCompletionRequest,
    request: Request,
    state: ServerState,
    engine: Engine,
    offered: Offer,
) -> Generation:
    if body.top_logprobs is not None and not body.logprobs:
        raise bad_request("top_logprobs needs logprobs", "top_logprobs")
    max_tokens = body.max_completion_tokens
    params = sampling_params(
        body,
        engine,
        max_tokens=body.max_tokens if max_tokens is None else max_tokens,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        prompt_logprobs=body.prompt_logprobs,
        structured=offered.structured,
    )
    messages = [message.for_template() for message in body.messages]
    prompt = ChatPrompt(messages, offered.for_template)
    check_work([prompt], params, engine, state.settings)
    request_id = f"chatcmpl-{uuid.uuid4().hex}"
    return Generation(
        request_id,
        [prompt],
        params,
        body.priority,
        salt_of(request, body),
        Deadline.of(request, state.settings),
    )


@dataclass(slots=True)
class ChatAnswer:
    """Turns outputs into the answer of one request."""

    body: ChatCompletionRequest
    generation: Generation
    engine: Engine
    function_names: frozenset[str]
    """Of the functions that it may call."""
    created: int = field(default_factory=lambda: int(time.time()))

    async def whole(self, request: Request, state: ServerState) -> ChatCompletion:
        """The answer in one piece."""
        tally = self.generation.tally()
        (output,) = await run_whole(request, state, self.engine, self.generation, tally)
        return await built(self.generation, partial(self._completion, output, tally))

    def _completion(self, output: RequestOutput, tally: Tally) -> ChatCompletion:
        return ChatCompletion(
            id=self.generation.request_id,
            created=self.created,
            model=self.body.model,
            choices=[self._choice(completion) for completion in output.outputs],
            usage=tally.usage(),
            prompt_logprobs=prompt_logprobs(
                self.engine.tokenizer, output, self.body.prompt_logprobs
            ),
            prompt_token_ids=output.prompt_token_ids if self.body.return_token_ids else UNSET,
        )

    async def frames(self, state: ServerState) -> AsyncGenerator[bytes, None]:
        """The answer as events."""
        tally = self.generation.tally()
        encoder = chunk_encoder(self.generation, "chat.completion.chunk", self.created, self.body)
        continuous = continuous_usage(self.body)
        readers = [AnswerReader(self.function_names) for _ in range(self.generation.params.n)]
        begun = False
        with state.serving(tally):
            async for _, output in self.generation.stream(self.engine, tally):
                if not begun:
                    begun = True
                    usage = tally.prompt_usage() if continuous else None
                    for frame in self._first_frames(encoder, output, usage):
                        yield frame
                for completion in output.outputs:
                    reader = readers[completion.index]
                    delta = reader.delta(completion)
                    has_content = says_something(delta)
                    if worth_sending(completion, self.body, has_content=has_content):
                        choice = self._chunk_choice(completion, delta, reader)
                        yield encoder.chunk([choice], tally.usage() if continuous else None)
        if include_usage(self.body):
            yield encoder.chunk([], tally.usage())

    def _first_frames(
        self, encoder: ChunkEncoder, output: RequestOutput, usage: Usage | None
    ) -> Iterator[bytes]:
        """The role of each answer; the very first also tells the prompt's token ids."""
        prompt_token_ids = output.prompt_token_ids if self.body.return_token_ids else None
        delta = ChatDelta(role="assistant", content="")
        for index in range(self.generation.params.n):
            choice = ChatChunkChoice(index=index, delta=delta)
            yield encoder.chunk([choice], usage, prompt_token_ids=prompt_token_ids)
            prompt_token_ids = None

    def _choice(self, completion: CompletionOutput) -> ChatChoice:
        reader = AnswerReader(self.function_names)
        return ChatChoice(
            index=completion.index,
            message=reader.message(completion),
            logprobs=self._logprobs(completion),
            finish_reason=reader.finish_reason(completion),
            stop_reason=completion.stop_reason,
            token_ids=completion.token_ids if self.body.return_token_ids else UNSET,
        )

    def _chunk_choice(
        self, completion: CompletionOutput, delta: ChatDelta, reader: AnswerReader
    ) -> ChatChunkChoice:
        return ChatChunkChoice(
            index=completion.index,
            delta=delta,
            logprobs=self._logprobs(completion),
            finish_reason=reader.finish_reason(completion),
            stop_reason=completion.stop_reason,
            token_ids=completion.token_ids if self.body.return_token_ids else UNSET,
        )

    def _logprobs(self, completion: CompletionOutput) -> ChatLogprobs | None:
        if completion.logprobs is None:
            return None
        return chat_logprobs(self.engine.tokenizer, completion.logprobs)

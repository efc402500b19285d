"""Runs the prompts of one request on the engine, whole or as one merged stream."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial

import msgspec

from nsa_api.deadline import Deadline
from nsa_api.engine import Engine
from nsa_api.entrance import about_to_reserve
from nsa_api.errors import unavailable
from nsa_api.tally import Tally
from nsa_serve.engine.prompts import Prompt
from nsa_serve.outputs import CompletionOutput, RequestOutput
from nsa_serve.params import SamplingParams

_MERGE_DEPTH = 256
"""Outputs that may wait for a slow client before the engine's own buffers fill."""

IndexedOutput = tuple[int, RequestOutput]


@dataclass(frozen=True, slots=True)
class Generation:
    """A validated request: continue each prompt n times."""

    request_id: str
    prompts: list[Prompt]
    params: SamplingParams
    priority: int
    salt: bytes
    deadline: Deadline
    prompt_only: bool = False
    """Nothing of the continuations is wanted: each ends before its first token."""

    def tally(self) -> Tally:
        """An empty count of its tokens."""
        return Tally(self.params, len(self.prompts), self.request_id)

    async def run(self, engine: Engine, tally: Tally) -> list[RequestOutput]:
        """Whole outputs in the order of the prompts; the first failure cancels the rest."""
        tasks = [
            asyncio.ensure_future(self._generate_one(engine, i)) for i in range(len(self.prompts))
        ]
        with self.deadline.kept(partial(self._abort, engine)):
            try:
                outputs = await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        return [self._taken(i, output, tally)[1] for i, output in enumerate(outputs)]

    async def stream(self, engine: Engine, tally: Tally) -> AsyncGenerator[IndexedOutput, None]:
        """What is new, with the index of its prompt, as it comes."""
        streams = [self._stream_one(engine, i) for i in range(len(self.prompts))]
        with self.deadline.kept(partial(self._abort, engine)):
            about_to_reserve()
            if len(streams) == 1:  # as nearly always: nothing to merge, and the less for a token
                async with aclosing(streams[0]) as outputs:
                    async for output in outputs:
                        yield self._taken(0, output, tally)
            else:
                async with aclosing(_merge(streams)) as merged:
                    async for i, output in merged:
                        yield self._taken(i, output, tally)

    async def _generate_one(self, engine: Engine, i: int) -> RequestOutput:
        about_to_reserve()
        return await engine.generate(
            self.prompts[i],
            self.params,
            request_id=self._id(i),
            priority=self.priority,
            salt=self.salt,
        )

    def _stream_one(self, engine: Engine, i: int) -> AsyncGenerator[RequestOutput, None]:
        return engine.stream(
            self.prompts[i],
            self.params,
            request_id=self._id(i),
            priority=self.priority,
            salt=self.salt,
        )

    def _taken(self, i: int, output: RequestOutput, tally: Tally) -> IndexedOutput:
        """What is told of an output, once it is counted."""
        if self.prompt_only:
            output = _without_continuations(output)
        tally.add(i, output)
        self._raise_if_aborted(output)
        return i, output

    async def _abort(self, engine: Engine) -> None:
        for i in range(len(self.prompts)):
            await engine.abort(self._id(i))

    def _raise_if_aborted(self, output: RequestOutput) -> None:
        """The engine aborts at the deadline, and by itself only when it shuts down."""
        for completion in output.outputs:
            if completion.finish_reason == "abort":
                if self.deadline.passed:
                    raise self.deadline.error()
                raise unavailable("The server is shutting down", code="aborted")

    def _id(self, i: int) -> str:
        return self.request_id if len(self.prompts) == 1 else f"{self.request_id}-{i}"


def _without_continuations(output: RequestOutput) -> RequestOutput:
    """The engine samples one token at least; here it is as if it had not."""
    return msgspec.structs.replace(
        output,
        outputs=[
            CompletionOutput(
                index=completion.index,
                text="",
                token_ids=[],
                logprobs=None if completion.logprobs is None else [],
                finish_reason="length"
                if completion.finish_reason == "stop"
                else completion.finish_reason,
            )
            for completion in output.outputs
        ],
    )


async def _merge(
    streams: list[AsyncGenerator[RequestOutput, None]],
) -> AsyncGenerator[IndexedOutput, None]:
    queue: asyncio.Queue[IndexedOutput | Exception | None] = asyncio.Queue(_MERGE_DEPTH)

    async def pump(i: int, stream: AsyncGenerator[RequestOutput, None]) -> None:
        try:
            async with aclosing(stream):
                async for output in stream:
                    await queue.put((i, output))
            await queue.put(None)
        except Exception as error:
            await queue.put(error)

    tasks = [asyncio.ensure_future(pump(i, stream)) for i, stream in enumerate(streams)]
    try:
        num_open = len(tasks)
        while num_open:
            item = await queue.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                num_open -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

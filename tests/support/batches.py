"""Batch files, and runs of them over an engine without a process."""

import asyncio
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from nsa_api.batches.offline import OfflineApi
from nsa_serve.batch.reading import InputFile
from nsa_serve.batch.running import BatchRun, Progress
from nsa_serve.batch.writing import OutputFile
from nsa_serve.config import EngineConfig
from nsa_serve.engine.client import AsyncEngine
from nsa_serve.engine.prompts import Prompt, encode_prompt
from nsa_serve.engine.stand_in import expected_continuation
from nsa_serve.outputs import CompletionOutput, RequestOutput
from nsa_serve.params import SamplingParams
from tests.support.fake_engine import FakeEngine

URL = "/v1/completions"
CHAT_URL = "/v1/chat/completions"


class KnownEngine(FakeEngine):
    """Continues as the stand-in does, each request after a moment of its own length."""

    def __init__(self, most_seconds: float = 0.0) -> None:
        super().__init__()
        self._most_seconds = most_seconds
        self.most_running = 0

    async def generate(
        self,
        prompt: Prompt,
        params: SamplingParams,
        *,
        request_id: str,
        priority: int = 0,
        salt: bytes = b"",
    ) -> RequestOutput:
        """The whole output; of continuation i that of the prompt and i zeros."""
        self.calls.append((prompt, params, salt))
        self.running.add(request_id)
        self.most_running = max(self.most_running, len(self.running))
        try:
            await asyncio.sleep(random.random() * self._most_seconds)
            if self.failure is not None:
                raise self.failure
            return self._whole(request_id, encode_prompt(prompt, self.tokenizer, self.info), params)
        finally:
            self.running.discard(request_id)

    def _whole(
        self, request_id: str, token_ids: list[int], params: SamplingParams
    ) -> RequestOutput:
        outputs = []
        for index in range(params.n):
            made = expected_continuation(token_ids + [0] * index, params.max_tokens or 16)
            outputs.append(
                CompletionOutput(
                    index=index,
                    text=self.tokenizer.decode(made),
                    token_ids=made,
                    finish_reason="length",
                )
            )
        return RequestOutput(
            request_id=request_id,
            prompt=None,
            prompt_token_ids=token_ids,
            outputs=outputs,
            num_cached_tokens=random.randrange(5),
        )


def line(custom_id: str, *, url: str = URL, method: str = "POST", **fields: Any) -> bytes:
    """A line of an input, its end included."""
    prompt = {"messages": [{"role": "user", "content": custom_id}]}
    body = {"model": "fake", **(prompt if url == CHAT_URL else {"prompt": custom_id}), **fields}
    request = {"custom_id": custom_id, "method": method, "url": url, "body": body}
    return msgspec.json.encode(request) + b"\n"


def many_lines(count: int, **fields: Any) -> bytes:
    """Completions and chats by turns, with ten bad lines of every hundred."""
    made = []
    for i in range(count):
        url = (URL, CHAT_URL)[i % 2]
        match i % 50:
            case 10:
                made.append(f"nonsense {i}\n".encode())
            case 20:
                made.append(line(f"r{i - 1}", url=url, **fields))  # a second time
            case 30:
                made.append(line(f"r{i}", url="/v1/elsewhere"))
            case 40:
                made.append(line(f"r{i}", url=url, **{**fields, "max_tokens": 0}))
            case 45:
                made.append(b"\xff\xfe\n")
            case _:
                made.append(line(f"r{i}", url=url, **{"max_tokens": 1 + i % 20, **fields}))
    return b"".join(made)


def run(
    source: Path, target: Path, engine: FakeEngine | None = None, *, resume: bool = False
) -> Progress:
    """Answer one file into another."""

    async def whole() -> Progress:
        with InputFile(source) as read, OutputFile(target, resume=resume) as write:
            api = OfflineApi(as_engine(engine or KnownEngine()), EngineConfig(), ())
            return await BatchRun(read, write, api, created=1_700_000_000).run()

    return asyncio.run(whole())


def as_engine(engine: Any) -> AsyncEngine:
    """Typed as the engine that it stands for."""
    known: AsyncEngine = engine
    return known


def records(path: Path) -> list[dict[str, Any]]:
    """The results, in the file's order."""
    return [msgspec.json.decode(text) for text in path.read_bytes().splitlines()]


def sorted_lines(path: Path) -> list[bytes]:
    """The lines, in an order of their own."""
    return sorted(path.read_bytes().splitlines())


def texts(results: Sequence[dict[str, Any]]) -> dict[str, str]:
    """What each completion says, by custom_id."""
    return {
        result["custom_id"]: result["response"]["body"]["choices"][0]["text"] for result in results
    }

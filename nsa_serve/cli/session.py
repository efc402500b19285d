"""An engine for commands that talk to it in turns: start it, stream answers, end it."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from nsa_serve.cli.options import Sampling
from nsa_serve.config import EngineConfig
from nsa_serve.engine.client import AsyncEngine
from nsa_serve.engine.progress import ProgressBar
from nsa_serve.engine.prompts import Prompt, default_params
from nsa_serve.model.loading.built_in import ensure_built_in
from nsa_serve.text.tokenizer import Tokenizer


@dataclass(slots=True)
class Answer:
    """What came of a prompt so far, and when, on a clock that starts with the question."""

    text: str = ""
    num_tokens: int = 0
    num_first: int = 0
    """Tokens that came together with the first."""
    first_token: float = 0.0
    last_token: float = 0.0
    asked: float = field(default_factory=time.perf_counter)

    def add(self, text: str, num_tokens: int) -> None:
        """Take in what one step gave."""
        self.last_token = time.perf_counter() - self.asked
        if not self.num_tokens:
            self.first_token, self.num_first = self.last_token, num_tokens
        self.text += text
        self.num_tokens += num_tokens

    def __str__(self) -> str:
        """Number of tokens, tokens per second after the first, time to the first."""
        parts = [f"{self.num_tokens} token{'s' * (self.num_tokens != 1)}"]
        if self.last_token > self.first_token:
            rate = (self.num_tokens - self.num_first) / (self.last_token - self.first_token)
            parts.append(f"{rate:.1f} tokens/s")
        if self.num_tokens:
            parts.append(f"first token after {self.first_token:.2f} s")
        return ", ".join(parts)


class Session:
    """A running engine that answers one prompt at a time, to standard output."""

    def __init__(self, runner: asyncio.Runner, engine: AsyncEngine, sampling: Sampling) -> None:
        self._runner, self._engine = runner, engine
        self._params = default_params(engine.generation, **sampling)
        self._num_asked = 0

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's."""
        return self._engine.tokenizer

    def answer(self, prompt: Prompt, answer: Answer) -> None:
        """Print the answer as it comes and gather it in `answer`; Ctrl-C raises and ends it."""
        self._runner.run(self._stream(prompt, answer))

    async def _stream(self, prompt: Prompt, answer: Answer) -> None:
        self._num_asked += 1
        stream = self._engine.stream(prompt, self._params, request_id=str(self._num_asked))
        async with aclosing(stream) as outputs:
            async for output in outputs:
                for part in output.outputs:
                    answer.add(part.text, len(part.token_ids))
                    print(part.text, end="", flush=True)


@contextmanager
def open_session(config: EngineConfig, sampling: Sampling) -> Iterator[Session]:
    """Load the model, with progress on a terminal's standard error, and end the engine after."""
    if config.model is None and config.runner == "model":
        bring_built_in()
    with asyncio.Runner() as runner:
        with spinner("Loading the model"):
            engine = runner.run(AsyncEngine.start(config))
        try:
            yield Session(runner, engine, sampling)
        finally:
            runner.run(engine.shutdown())


def bring_built_in() -> Path:
    """The folder of the built-in model; a bar shows how it is made on first use."""
    percent = 0
    with ProgressBar("Converting the built-in model", 100, enabled=True) as bar:

        def report(_: str, fraction: float) -> None:
            nonlocal percent
            bar.advance(round(100 * fraction) - percent)
            percent = round(100 * fraction)

        return ensure_built_in(report)


def spinner(what: str) -> Progress:
    """For work of unknown length; shows nothing where standard error is no terminal."""
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    console = Console(stderr=True)
    progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    progress.add_task(what, total=None)
    return progress

"""`nsa-serve chat`: a conversation, typed or piped in."""

import importlib
import re
import sys
from collections.abc import Iterator
from typing import Any

import typer

from nsa_serve.cli.options import (
    FOR_MANY,
    ModelArgument,
    Sampling,
    engine_options,
    sampling_options,
)
from nsa_serve.cli.session import Answer, Session, open_session
from nsa_serve.config import EngineConfig
from nsa_serve.engine.prompts import ChatPrompt
from nsa_serve.errors import ConfigError, RequestError

_HELP = "/reset forgets the conversation, /exit or Ctrl-D leaves, Ctrl-C stops an answer"


@sampling_options
@engine_options(model=ModelArgument, hidden=FOR_MANY, max_num_seqs=1)
def chat(config: EngineConfig, sampling: Sampling) -> None:
    """Talk with a model.

    On a terminal, /help says what can be typed. From a pipe, each line is a turn.
    """
    interactive = sys.stdin.isatty()
    with open_session(config, sampling) as session:
        if not session.tokenizer.has_chat_template:
            raise ConfigError("this model has no chat template; `nsa-serve generate` continues it")
        conversation = _Conversation(session, interactive)
        for line in _typed_lines() if interactive else sys.stdin:
            match line.strip():
                case "":
                    pass
                case "/exit":
                    return
                case "/reset":
                    conversation.reset()
                case word if interactive and re.fullmatch(r"/\w*", word):
                    print(_HELP, file=sys.stderr)
                case turn:
                    conversation.say(turn)


class _Conversation:
    """What was said so far."""

    def __init__(self, session: Session, interactive: bool) -> None:
        self._session = session
        self._interactive = interactive
        self._messages: list[dict[str, Any]] = []

    def reset(self) -> None:
        self._messages.clear()

    def say(self, text: str) -> None:
        """Print the answer; one that was stopped stays in the conversation as far as it came."""
        question = {"role": "user", "content": text}
        answer = Answer()
        try:
            self._session.answer(ChatPrompt([*self._messages, question]), answer)
        except RequestError as error:
            if not self._interactive:
                raise
            print(f"error: {error} (/reset forgets the conversation)", file=sys.stderr)
            return
        except KeyboardInterrupt:
            if not self._interactive:
                raise
        print(flush=True)
        typer.secho(str(answer), dim=True, err=True)
        self._messages += question, {"role": "assistant", "content": answer.text}


def _typed_lines() -> Iterator[str]:
    """What is typed, until Ctrl-D."""
    importlib.import_module("readline")  # gives input() its line editing and history
    print(_HELP, file=sys.stderr)
    while True:
        try:
            yield input("> ")
        except KeyboardInterrupt:
            print(file=sys.stderr)
        except EOFError:
            print(file=sys.stderr)
            return

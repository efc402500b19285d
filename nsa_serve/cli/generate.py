"""`nsa-serve generate`: continue one prompt."""

import sys
from typing import Annotated

import typer

from nsa_serve.cli.options import (
    FOR_MANY,
    ModelOption,
    Sampling,
    engine_options,
    sampling_options,
)
from nsa_serve.cli.session import Answer, open_session
from nsa_serve.config import EngineConfig
from nsa_serve.engine.prompts import ChatPrompt, Prompt
from nsa_serve.errors import RequestError
from nsa_serve.text.tokenizer import Tokenizer


@sampling_options
@engine_options(model=ModelOption, hidden=FOR_MANY, max_num_seqs=1)
def generate(
    config: EngineConfig,
    sampling: Sampling,
    prompt: Annotated[
        str | None, typer.Argument(help="The prompt; standard input unless given.")
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the bare text, without the chat template.")
    ] = False,
) -> None:
    """Continue one prompt.

    It is printed as it comes; a line of figures follows on standard error. A model with a chat
    template answers the prompt as a user's message.
    """
    text = _read_prompt() if prompt is None else prompt
    if not text:
        raise RequestError("the prompt is empty")
    with open_session(config, sampling) as session:
        answer = Answer()
        session.answer(_prompt(text, session.tokenizer, raw), answer)
        print(flush=True)
    print(answer, file=sys.stderr)


def _read_prompt() -> str:
    """All of standard input, but for the line break that ends it."""
    if sys.stdin.isatty():
        raise typer.BadParameter("give a prompt, or pipe one in", param_hint="PROMPT")
    try:
        return sys.stdin.buffer.read().decode().removesuffix("\n")
    except UnicodeDecodeError:
        raise RequestError("standard input is not UTF-8 text") from None


def _prompt(text: str, tokenizer: Tokenizer, raw: bool) -> Prompt:
    if raw or not tokenizer.has_chat_template:
        return text
    return ChatPrompt([{"role": "user", "content": text}])

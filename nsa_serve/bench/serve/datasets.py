"""Where prompts come from: drawn at random, or read from a file."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from nsa_serve.bench.serve.options import DataOptions, RandomData
from nsa_serve.bench.serve.prompts import Messages, Sample
from nsa_serve.bench.serve.sizing import Sizer
from nsa_serve.bench.serve.words import random_text
from nsa_serve.errors import ConfigError
from nsa_serve.model.loading.json_file import one_line

_MIN_TOKENS = 4
"""Shorter conversations of a file are left out, as everybody's load tests do."""
_DEFAULT_OUTPUT_LEN = 128


def random_samples(
    options: RandomData, count: int, sizer: Sizer, rng: random.Random
) -> list[Sample]:
    """Prompts of random text or token ids; the shared prefixes come first in them."""
    make = _ids_maker(options.vocab_size, rng) if options.vocab_size else _text_maker(sizer, rng)
    prefixes = [make(options.prefix_len) for _ in range(options.num_prefixes)]
    samples = []
    for _ in range(count):
        length, max_tokens = (
            _draw(n, options.range_ratio, rng) for n in (options.input_len, options.output_len)
        )
        prompt = _join(rng.choice(prefixes), make(length))
        samples.append(
            Sample(prompt=prompt, max_tokens=max_tokens, prompt_tokens=options.prefix_len + length)
        )
    return samples


def file_samples(
    options: DataOptions, count: int, sizer: Sizer, rng: random.Random
) -> list[Sample]:
    """Prompts of a file in random order; it is begun again where it has too few."""
    path = options.path
    assert path is not None
    read = _read_sharegpt if options.dataset == "sharegpt" else _read_jsonl
    found = [
        _sized(prompt, options.output_len or length, sizer) for prompt, length in read(path, sizer)
    ]
    if not found:
        raise ConfigError(f"{path} holds no usable prompt")
    samples: list[Sample] = []
    while len(samples) < count:
        samples += rng.sample(found, len(found))
    return samples[:count]


def _draw(mean: int, ratio: float, rng: random.Random) -> int:
    return rng.randint(max(int(mean * (1.0 - ratio)), 1), int(mean * (1.0 + ratio)))


def _text_maker(sizer: Sizer, rng: random.Random) -> Any:
    def make(num_tokens: int) -> str:
        if num_tokens == 0:
            return ""
        text = random_text(rng, int(1.3 * sizer.chars(num_tokens)) + 32)
        return sizer.cut(text, num_tokens)

    return make


def _ids_maker(vocab_size: int, rng: random.Random) -> Any:
    return lambda num_tokens: [rng.randrange(vocab_size) for _ in range(num_tokens)]


def _join(prefix: Any, rest: Any) -> Any:
    return f"{prefix} {rest}" if isinstance(prefix, str) and prefix else prefix + rest


def _sized(prompt: str | Messages, max_tokens: int, sizer: Sizer) -> Sample:
    text = prompt if isinstance(prompt, str) else "\n".join(m["content"] for m in prompt)
    return Sample(prompt=prompt, max_tokens=max_tokens, prompt_tokens=sizer.count(text))


class _Turn(msgspec.Struct, frozen=True):
    value: str = ""


class _Conversation(msgspec.Struct, frozen=True):
    conversations: list[_Turn] = []


def _read_sharegpt(path: Path, sizer: Sizer) -> Iterator[tuple[str, int]]:
    """The first question of each conversation, and the length of its answer."""
    try:
        conversations = msgspec.json.decode(path.read_bytes(), type=list[_Conversation])
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no list of conversations: {one_line(error)}") from None
    for conversation in conversations:
        if len(conversation.conversations) >= 2:
            question, answer = (turn.value for turn in conversation.conversations[:2])
            if min(map(sizer.count, (question, answer))) >= _MIN_TOKENS:
                yield question, sizer.count(answer)


class _Line(msgspec.Struct, frozen=True):
    prompt: str | None = None
    messages: list[dict[str, str]] | None = None
    max_tokens: int | None = None
    output_tokens: int | None = None


def _read_jsonl(path: Path, sizer: Sizer) -> Iterator[tuple[str | Messages, int]]:
    """`{"prompt": …}` or `{"messages": …}`, with `max_tokens` or `output_tokens` if known."""
    decode = msgspec.json.Decoder(_Line).decode
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    for number, data in enumerate(lines, 1):
        if not data.strip():
            continue
        try:
            line = decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}, line {number}: {one_line(error)}") from None
        prompt = line.prompt if line.prompt is not None else line.messages
        if not prompt or not all("content" in m for m in line.messages or ()):
            raise ConfigError(f"{path}, line {number}: expected a prompt or messages")
        yield prompt, line.max_tokens or line.output_tokens or _DEFAULT_OUTPUT_LEN

"""The part of tokenizer.json that can contradict a model, read without building a tokenizer."""

from pathlib import Path
from typing import Any

import msgspec

from nsa_serve.errors import ModelLoadError
from nsa_serve.model.loading.json_file import read_json
from nsa_serve.text.tokenizer_config import read_tokenizer_config


class _AddedToken(msgspec.Struct):
    id: int
    content: str


class _Model(msgspec.Struct):
    vocab: dict[str, int] | list[tuple[str, Any]]
    """A list in Unigram models, where the place is the id."""


class _TokenizerFile(msgspec.Struct):
    model: _Model
    added_tokens: list[_AddedToken] = []


class Vocabulary(msgspec.Struct, frozen=True):
    """What a model must agree with."""

    size: int
    """One more than the highest token id."""
    eos_token_id: int | None


BYTES = Vocabulary(256, None)
"""Of a model whose tokens are the bytes of UTF-8 and nothing else."""


def read_vocabulary(folder: Path) -> Vocabulary:
    """Of a model folder; raises `ModelLoadError` if the tokenizer's files are damaged."""
    path = folder / "tokenizer.json"
    file = read_json(path, _TokenizerFile)
    added = {token.content: token.id for token in file.added_tokens}
    vocab = file.model.vocab
    known = vocab if isinstance(vocab, dict) else {}
    highest = max(known.values(), default=-1) if isinstance(vocab, dict) else len(vocab) - 1
    lowest = min([*known.values(), *added.values()], default=0)
    if lowest < 0:
        raise ModelLoadError(f"{path}: token id {lowest} is negative")
    eos_token = read_tokenizer_config(folder).special_tokens.get("eos_token")
    eos_token_id = None if eos_token is None else added.get(eos_token, known.get(eos_token))
    return Vocabulary(max(highest, *added.values(), -1) + 1, eos_token_id)

"""Keeping what users write apart from the special tokens that a chat template writes.

A user who spells `<|im_start|>` must not open a turn. Before a template is rendered, every such
spelling inside the messages is replaced by a placeholder character that occurs nowhere in them;
the special tokens in the rendered text are then those of the template alone.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tokenizers import AddedToken

from nsa_serve.errors import RequestError

_PRIVATE_USE = range(0xF0000, 0xFFFFE)
_NEVER = r"(?!)"


class SpecialTokens:
    """The special tokens of a tokenizer, and where they occur in a text.

    Longest match first, and whitespace swallowed where a token asks for it, as the tokenizer does.
    """

    def __init__(self, tokens: Mapping[int, AddedToken]) -> None:
        special = [(i, token) for i, token in tokens.items() if token.special and token.content]
        special.sort(key=lambda item: -len(item[1].content))
        self._ids = [i for i, _ in special]
        self._spelling = re.compile("|".join(re.escape(t.content) for _, t in special) or _NEVER)
        self._token = re.compile("|".join(_pattern(token) for _, token in special) or _NEVER)
        self._beginnings = {
            token.content[:end] for _, token in special for end in range(1, len(token.content))
        }
        self._longest = max((len(token.content) for _, token in special), default=1)

    def spelled_in(self, value: Any) -> bool:
        """Whether a string within nested lists and dicts spells one, or ends with a part of one."""
        return any(self._spelling.search(text) or self._ends_open(text) for text in _strings(value))

    def split(self, text: str) -> Iterator[str | int]:
        """The ordinary stretches of a text and, between them, the ids of its special tokens."""
        end = 0
        for match in self._token.finditer(text):
            assert match.lastindex is not None
            yield text[end : match.start()]
            yield self._ids[match.lastindex - 1]
            end = match.end()
        yield text[end:]

    def hide(self, value: Any) -> "Hidden":
        """The value without spellings of special tokens, and what stands for them."""
        free = _unused_characters(value)
        stand_ins: dict[str, str] = {}

        def stand_in(spelling: str) -> str:
            if spelling not in stand_ins:
                stand_ins[spelling] = next(free)
            return stand_ins[spelling]

        def hide(text: str) -> str:
            hidden = self._spelling.sub(lambda match: stand_in(match[0]), text)
            return hidden + stand_in("") if self._ends_open(text) else hidden

        return Hidden(_map_strings(value, hide), {ord(c): s for s, c in stand_ins.items()})

    def _ends_open(self, text: str) -> bool:
        """Whether what a template puts behind the text could complete a special token."""
        tail = text[-self._longest :]
        return any(tail[start:] in self._beginnings for start in range(len(tail)))


class Hidden:
    """A value whose spellings of special tokens are hidden behind single characters."""

    def __init__(self, value: Any, spellings: dict[int, str]) -> None:
        self.value = value
        self._spellings = spellings

    def reveal(self, text: str) -> str:
        """The text with the spellings back in place."""
        return text.translate(self._spellings)


def _pattern(token: AddedToken) -> str:
    before, after = (r"\s*" if token.lstrip else ""), (r"\s*" if token.rstrip else "")
    return f"{before}({re.escape(token.content)}){after}"


def _unused_characters(value: Any) -> Iterator[str]:
    used = set().union(*_strings(value))
    yield from (chr(code) for code in _PRIVATE_USE if chr(code) not in used)
    raise RequestError("the messages use up the private-use characters", param="messages")


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _strings([*value.keys(), *value.values()])
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)


def _map_strings(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {_map_strings(k, change): _map_strings(v, change) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_map_strings(item, change) for item in value]
    return value

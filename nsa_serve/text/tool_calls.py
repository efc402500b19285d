"""Finds calls of functions in an answer while it comes: text, and calls with their arguments."""

import json
import re
from collections.abc import Collection
from typing import Any

import msgspec

from nsa_serve.text.tools import CLOSE, OPEN

_HEAD = re.compile(
    r'\s*\{\s*"name"\s*:\s*("[^"\\]*")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)'
)
"""Of a call whose arguments can be passed on as they come."""


class Text(msgspec.Struct, frozen=True):
    """More of the answer's text."""

    text: str


class CallBegins(msgspec.Struct, frozen=True):
    """The next call, of which nothing but the name is known."""

    name: str


class Arguments(msgspec.Struct, frozen=True):
    """More of the last call's arguments, a piece of JSON."""

    text: str


Event = Text | CallBegins | Arguments


class ToolCallParser:
    """Takes in an answer in pieces of any length.

    What stands between the tags but is no call of one of the functions `names` stays text. White
    space around calls is dropped.
    """

    def __init__(self, names: Collection[str]) -> None:
        self._names = names
        self._held = ""
        """Not yet passed on."""
        self._state = self._in_text
        self._object = _ObjectEnd()
        self.num_calls = 0

    def push(self, piece: str) -> list[Event]:
        """What is new."""
        self._held += piece
        return self._run(last=False)

    def finish(self) -> list[Event]:
        """What was held back, when no more will come."""
        return self._run(last=True)

    def _run(self, *, last: bool) -> list[Event]:
        events: list[Event] = []
        while self._state(events, last):
            pass
        return events

    def _in_text(self, events: list[Event], last: bool) -> bool:
        before, tag, after = self._held.partition(OPEN)
        if tag:
            self._say(events, before.rstrip())
            self._held, self._state = after, self._at_call
            return True
        shown = len(self._held) if last else _num_settled(self._held)
        self._say(events, self._held[:shown])
        self._held = self._held[shown:]
        return False

    def _say(self, events: list[Event], text: str) -> None:
        if self.num_calls:  # only white space is expected behind a call
            text = text if text.strip() else ""
        if text:
            events.append(Text(text))

    def _at_call(self, events: list[Event], last: bool) -> bool:
        """Behind an opening tag."""
        head = _HEAD.match(self._held)
        if head is not None and json.loads(head[1]) in self._names:
            self.num_calls += 1
            events.append(CallBegins(json.loads(head[1])))
            self._held, self._object = self._held[head.end() :], _ObjectEnd()
            self._state = self._in_arguments
            return True
        body, tag, after = self._held.partition(CLOSE)
        if not tag and not last:
            return False
        call = _whole_call(body, self._names)
        if call is None:
            self._say(events, OPEN + body + tag)
        else:
            self.num_calls += 1
            events += [CallBegins(call[0]), Arguments(call[1])]
        self._held, self._state = after, self._in_text
        return bool(after)

    def _in_arguments(self, events: list[Event], last: bool) -> bool:
        end = self._object.find(self._held)
        if self._held[:end]:
            events.append(Arguments(self._held[:end]))
        self._held = self._held[end:]
        if not self._object.ended:
            return False
        self._state = self._behind_arguments
        return True

    def _behind_arguments(self, events: list[Event], last: bool) -> bool:
        _, tag, after = self._held.partition(CLOSE)
        if not tag:
            return False
        self._held, self._state = after, self._in_text
        return True


class _ObjectEnd:
    """Where a JSON object that comes in pieces ends."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = self._escaped = False
        self.ended = False

    def find(self, piece: str) -> int:
        """How much of the next piece belongs to the object."""
        for i, character in enumerate(piece):
            if self._escaped:
                self._escaped = False
            elif self._in_string:
                self._escaped = character == "\\"
                self._in_string = character != '"'
            elif character == '"':
                self._in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth == 0:
                    self.ended = True
                    return i + 1
        return len(piece)


def _num_settled(text: str) -> int:
    """Length of what cannot belong to white space before a tag, or to a tag."""
    for length in range(min(len(text), len(OPEN) - 1), 0, -1):
        if OPEN.startswith(text[-length:]):
            return len(text[:-length].rstrip())
    return len(text.rstrip())


def _whole_call(body: str, names: Collection[str]) -> tuple[str, str] | None:
    """Name and arguments of a call written in any order."""
    try:
        call: Any = json.loads(body)
        arguments = call["arguments"] if "arguments" in call else call["parameters"]
        if isinstance(arguments, str):
            arguments = json.loads(arguments)
        if call["name"] in names and isinstance(arguments, dict):
            return call["name"], json.dumps(arguments, ensure_ascii=False)
    except (ValueError, TypeError, KeyError, RecursionError):
        pass
    return None

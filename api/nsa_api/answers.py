"""What a continuation of a chat says: text, and calls of functions in it."""

import uuid
from collections.abc import Collection

from msgspec import UNSET

from nsa_api.responses import (
    AssistantMessage,
    ChatDelta,
    ChatFinishReason,
    FunctionCall,
    FunctionDelta,
    ToolCall,
    ToolCallDelta,
)
from nsa_serve.outputs import CompletionOutput
from nsa_serve.text.tool_calls import Arguments, CallBegins, Event, Text, ToolCallParser


class AnswerReader:
    """Reads one continuation, whole or in pieces. With no `names` of functions, text stays text."""

    def __init__(self, names: Collection[str]) -> None:
        self._parser = ToolCallParser(names) if names else None

    def message(self, completion: CompletionOutput) -> AssistantMessage:
        """Of a continuation in one piece."""
        if self._parser is None:
            return AssistantMessage("assistant", completion.text)
        text, calls = "", list[tuple[str, list[str]]]()
        for event in self._events(self._parser, completion):
            if isinstance(event, Text):
                text += event.text
            elif isinstance(event, CallBegins):
                calls.append((event.name, []))
            else:
                calls[-1][1].append(event.text)
        if not calls:
            return AssistantMessage("assistant", text)
        functions = [FunctionCall(name, "".join(pieces)) for name, pieces in calls]
        tool_calls = [ToolCall(id=_new_id(), function=function) for function in functions]
        return AssistantMessage("assistant", text or None, tool_calls)

    def delta(self, completion: CompletionOutput) -> ChatDelta:
        """Of what is new of it."""
        if self._parser is None:
            return ChatDelta(content=completion.text)
        number = self._parser.num_calls - 1
        text, calls = "", list[ToolCallDelta]()
        for event in self._events(self._parser, completion):
            match event:
                case Text():
                    text += event.text
                case CallBegins():
                    number += 1
                    begun = FunctionDelta(name=event.name, arguments="")
                    call = ToolCallDelta(
                        index=number, id=_new_id(), type="function", function=begun
                    )
                    calls.append(call)
                case Arguments():
                    more = FunctionDelta(arguments=event.text)
                    calls.append(ToolCallDelta(index=number, function=more))
        return ChatDelta(content=text or UNSET, tool_calls=calls or UNSET)

    def finish_reason(self, completion: CompletionOutput) -> ChatFinishReason | None:
        """Why it ended; a call is a reason of its own."""
        called = self._parser is not None and self._parser.num_calls > 0
        return (
            "tool_calls"
            if called and completion.finish_reason == "stop"
            else (completion.finish_reason)
        )

    @staticmethod
    def _events(parser: ToolCallParser, completion: CompletionOutput) -> list[Event]:
        events = parser.push(completion.text)
        return events + parser.finish() if completion.finished else events


def says_something(delta: ChatDelta) -> bool:
    """Whether there is anything in it."""
    return bool(delta.content) or delta.tool_calls is not UNSET


def _new_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"

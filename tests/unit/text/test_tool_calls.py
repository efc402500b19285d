"""Calls of functions are found in an answer, however it is cut into pieces."""

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nsa_serve.text.tool_calls import Arguments, CallBegins, Event, Text, ToolCallParser
from nsa_serve.text.tools import call_text, with_tools_told

NAMES = {"get_weather", "now"}
ROME = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>'
NOW = '<tool_call>{"name": "now", "arguments": {}}</tool_call>'
OTHER_ORDER = '<tool_call>{"arguments": {"a": [1, "}"]}, "name": "now"}</tool_call>'
QUOTED = '<tool_call>{"name": "now", "arguments": "{\\"a\\": 1}"}</tool_call>'
BRACES = '<tool_call>{"name":"now","arguments":{"t":"} \\" </tool_call> {","b":{}}}</tool_call>'

# answer → (text, calls)
CASES: dict[str, tuple[str, list[tuple[str, object]]]] = {
    "": ("", []),
    "Hello.": ("Hello.", []),
    "  a < b <tool": ("  a < b <tool", []),
    ROME: ("", [("get_weather", {"city": "Rome"})]),
    f"Let me see.\n{ROME}\n{NOW}\n": (
        "Let me see.",
        [("get_weather", {"city": "Rome"}), ("now", {})],
    ),
    f"{NOW} and then": (" and then", [("now", {})]),
    OTHER_ORDER: ("", [("now", {"a": [1, "}"]})]),
    QUOTED: ("", [("now", {"a": 1})]),
    BRACES: ("", [("now", {"t": '} " </tool_call> {', "b": {}})]),
    "<tool_call>nonsense</tool_call> x": ("<tool_call>nonsense</tool_call> x", []),
    "<tool_call>no end": ("<tool_call>no end", []),
    '<tool_call>{"name": "rm", "arguments": {}}</tool_call>': (
        '<tool_call>{"name": "rm", "arguments": {}}</tool_call>',
        [],
    ),
}


def gathered(events: list[Event]) -> tuple[str, list[tuple[str, object]]]:
    text, calls = "", list[tuple[str, str]]()
    for event in events:
        if isinstance(event, Text):
            text += event.text
        elif isinstance(event, CallBegins):
            calls.append((event.name, ""))
        else:
            assert isinstance(event, Arguments)
            calls[-1] = (calls[-1][0], calls[-1][1] + event.text)
    return text, [(name, json.loads(arguments)) for name, arguments in calls]


def parsed(pieces: list[str]) -> tuple[str, list[tuple[str, object]]]:
    parser = ToolCallParser(NAMES)
    events = [event for piece in pieces for event in parser.push(piece)]
    return gathered(events + parser.finish())


@pytest.mark.parametrize("answer", CASES)
def test_whole_answers_and_single_characters_give_the_same(answer: str) -> None:
    assert parsed([answer]) == CASES[answer]
    assert parsed(list(answer)) == CASES[answer]


@settings(max_examples=200, deadline=None)
@given(answer=st.sampled_from(sorted(CASES)), cuts=st.lists(st.integers(0, 200), max_size=6))
def test_any_cut_gives_the_same(answer: str, cuts: list[int]) -> None:
    places = sorted({0, len(answer), *(min(cut, len(answer)) for cut in cuts)})
    pieces = [answer[a:b] for a, b in pairwise(places)]
    assert parsed(pieces) == CASES[answer]


def test_arguments_come_as_they_are_written() -> None:
    parser = ToolCallParser(NAMES)
    assert parser.push('<tool_call>{"name": "now", "arguments": {"a": "x') == [
        CallBegins("now"),
        Arguments('{"a": "x'),
    ]
    assert parser.push("y") == [Arguments("y")]
    assert parser.finish() == []


def test_text_is_shown_at_once_but_for_what_may_be_a_tag() -> None:
    parser = ToolCallParser(NAMES)
    assert parser.push("Hi there <to") == [Text("Hi there")]
    assert parser.push("p> x") == [Text(" <top> x")]


def test_a_template_without_tools_gets_them_as_text() -> None:
    tools = [{"type": "function", "function": {"name": "now"}}]
    call = {"function": {"name": "now", "arguments": {"zone": "UTC"}}}
    told = with_tools_told(
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Time?"},
            {"role": "assistant", "content": "", "tool_calls": [call, call]},
            {"role": "tool", "content": "12:00"},
            {"role": "tool", "content": "13:00"},
        ],
        tools,
    )
    assert [message["role"] for message in told] == ["system", "user", "assistant", "user"]
    assert told[0]["content"].startswith("Be brief.\n\n")
    assert '{"type": "function", "function": {"name": "now"}}' in told[0]["content"]
    assert told[2]["content"] == "\n".join([call_text("now", {"zone": "UTC"})] * 2)
    assert parsed([told[2]["content"]])[1] == [("now", {"zone": "UTC"})] * 2
    assert told[3]["content"].count("<tool_response>") == 2


def test_without_a_system_message_they_get_one() -> None:
    told = with_tools_told([{"role": "user", "content": "x"}], [{"type": "function"}])
    assert [message["role"] for message in told] == ["system", "user"]
    assert with_tools_told([{"role": "user", "content": "x"}], None) == [
        {"role": "user", "content": "x"}
    ]

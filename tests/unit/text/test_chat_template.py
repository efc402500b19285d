"""Templates see what transformers shows them, and nothing outside the sandbox."""

from datetime import datetime
from typing import Any

import pytest

from nsa_serve.errors import ModelLoadError, RequestError
from nsa_serve.text.chat_template import ChatTemplate, join_text_parts

MESSAGES = [{"role": "user", "content": "Hello"}]


def _render(source: str, messages: Any = MESSAGES, *, add_generation_prompt: bool = True) -> str:
    template = ChatTemplate(source, {"bos_token": "<s>"})
    return template.render(messages, add_generation_prompt=add_generation_prompt)


def test_messages_special_tokens_and_the_generation_prompt_are_there() -> None:
    source = "{{ bos_token }}{{ messages[0].content }}{% if add_generation_prompt %}>{% endif %}"
    assert _render(source) == "<s>Hello>"
    assert _render(source, add_generation_prompt=False) == "<s>Hello"


def test_block_lines_leave_no_whitespace() -> None:
    source = (
        "{% for m in messages %}\n  {% if true %}\n{{ m.content }}\n  {% endif %}\n{% endfor %}"
    )
    assert _render(source) == "Hello\n"


def test_loops_can_be_left() -> None:
    assert (
        _render("{% for i in range(9) %}{{ i }}{% if i == 2 %}{% break %}{% endif %}{% endfor %}")
        == "012"
    )


def test_tojson_escapes_nothing_for_html() -> None:
    assert _render("{{ {'a': '<é>'} | tojson }}") == '{"a": "<é>"}'
    assert _render("{{ {'b': 1, 'a': 2} | tojson(indent=1, sort_keys=true) }}") == (
        '{\n "a": 2,\n "b": 1\n}'
    )


def test_the_date_is_todays() -> None:
    assert _render("{{ strftime_now('%Y') }}") in {str(datetime.now().year + i) for i in (-1, 0)}


def test_generation_marks_are_passed_over() -> None:
    assert _render("{% generation %}{{ messages[0].content }}{% endgeneration %}") == "Hello"


def test_tools_and_documents_are_none() -> None:
    assert _render("{{ tools is none }}{{ documents is none }}") == "TrueTrue"


def test_what_the_template_refuses_is_a_bad_request() -> None:
    source = "{% if messages | length > 1 %}{{ raise_exception('One only!') }}{% endif %}"
    with pytest.raises(RequestError, match="refuses these messages: One only!"):
        _render(source, MESSAGES * 2)


@pytest.mark.parametrize("messages", [[{"role": "user"}], [{"content": None}], [3], []])
def test_messages_that_it_cannot_render_are_a_bad_request(messages: Any) -> None:
    with pytest.raises(RequestError) as caught:
        _render("{{ messages[0]['content'] + '!' }}", messages)
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    "source",
    [
        "{% for %}",
        "{{ unknown_function() }}",
        "{{ raise_exception('always') }}",
        "{{ ().__class__.__bases__[0].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ messages.__init__.__globals__ }}",
        "{% include 'x' %}",
        "{{ range(10000000) | list }}",
        "{{ 1 / 0 }}",
    ],
)
def test_a_template_that_does_not_render_is_refused_at_load(source: str) -> None:
    with pytest.raises(ModelLoadError, match="does not render") as caught:
        ChatTemplate(source, {})
    assert "\n" not in str(caught.value)


def test_text_parts_become_one_string() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    joined = join_text_parts({"role": "user", "content": parts, "name": "x"})
    assert joined == {"role": "user", "content": "a\nb", "name": "x"}


@pytest.mark.parametrize("part", [{"type": "image_url"}, "a", {"type": "text", "text": 3}, None])
def test_other_parts_are_a_bad_request(part: Any) -> None:
    with pytest.raises(RequestError, match="type text"):
        join_text_parts({"role": "user", "content": [part]})

"""Log records as lines and as JSON."""

import json
import logging
import re
import sys

import pytest

from nsa_serve.logs import FORMAT_VARIABLE, JsonFormatter, TextFormatter, configure_logs, request_id


def record(message: str, *args: object, **fields: object) -> logging.LogRecord:
    made = logging.LogRecord("nsa.test", logging.WARNING, __file__, 1, message, args, None)
    made.created, made.msecs = 0.25, 250.0
    made.__dict__["fields"] = fields
    return made


def test_a_json_record_is_one_line_whatever_it_holds() -> None:
    line = JsonFormatter().format(
        record("two\nlines \x1b[31m of %s", "ünïcode", status=200, odd=object)
    )
    assert "\n" not in line
    entry = json.loads(line)
    assert entry["message"] == "two\nlines \x1b[31m of ünïcode"
    assert (entry["level"], entry["logger"]) == ("WARNING", "nsa.test")
    assert entry["time"] == "1970-01-01T00:00:00.250Z"
    assert (entry["status"], entry["odd"]) == (200, "<class 'object'>")
    assert "request_id" not in entry


def test_records_made_while_a_request_is_answered_carry_its_id() -> None:
    token = request_id.set("abc")
    try:
        assert json.loads(JsonFormatter().format(record("x")))["request_id"] == "abc"
        line = TextFormatter().format(record("x", status=1))
        assert line.partition(" ")[2] == "WARNING nsa.test: x request_id=abc status=1"
    finally:
        request_id.reset(token)
    assert re.fullmatch(r"\d\d:\d\d:\d\d WARNING nsa.test: x", TextFormatter().format(record("x")))


def test_lines_do_not_repeat_what_their_message_says() -> None:
    made = record("GET 200", method="GET", status=200, seconds=1)
    made.__dict__["said"] = ("method", "status")
    assert TextFormatter().format(made).endswith("nsa.test: GET 200 seconds=1")
    assert json.loads(JsonFormatter().format(made))["status"] == 200


def test_a_traceback_is_part_of_the_json_record() -> None:
    made = record("failed")
    try:
        raise ValueError("the cause")
    except ValueError:
        made.exc_info = sys.exc_info()
    entry = json.loads(JsonFormatter().format(made))
    assert entry["exception"].endswith("ValueError: the cause")


@pytest.mark.parametrize(("chosen", "inherited"), [("json", "text"), (None, "json")])
def test_the_format_is_chosen_or_inherited(
    chosen: str | None, inherited: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FORMAT_VARIABLE, inherited)
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)
    configure_logs("json" if chosen else None)
    (handler,) = root.handlers
    assert isinstance(handler.formatter, JsonFormatter)

"""Log records as lines for people, or as one JSON object each for whatever gathers them."""

import json
import logging
import os
import sys
import time
from contextvars import ContextVar
from typing import Literal

LogFormat = Literal["text", "json"]

FORMAT_VARIABLE = "NSA_SERVE_LOG_FORMAT"
"""How processes that a server starts learn which format it uses."""

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
"""Of the HTTP request that is being answered; every record made meanwhile carries it."""


class JsonFormatter(logging.Formatter):
    """`{"time", "level", "logger", "process", "message"}`, the request's id and the stack if there
    are any, and whatever the record's `extra={"fields": {…}}` holds."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, whatever the message holds."""
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        entry: dict[str, object] = {
            "time": f"{seconds}.{int(record.msecs):03}Z",
            "level": record.levelname,
            "logger": record.name,
            "process": record.process,
            "message": record.getMessage(),
        }
        if (current := request_id.get()) is not None:
            entry["request_id"] = current
        entry.update(getattr(record, "fields", {}))
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False, default=str)


class TextFormatter(logging.Formatter):
    """`HH:MM:SS LEVEL logger: message`, the request's id and the fields behind it, but for those
    that the record's `extra={"said": (…)}` names because its message has them."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s", "%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """The line without a traceback."""
        given: dict[str, object] = getattr(record, "fields", {})
        said: tuple[str, ...] = getattr(record, "said", ())
        fields = {name: value for name, value in given.items() if name not in said}
        if (current := request_id.get()) is not None:
            fields = {"request_id": current, **fields}
        shown = "".join(f" {name}={value}" for name, value in fields.items())
        return super().formatMessage(record) + shown


def configure_logs(chosen: LogFormat | None = None) -> None:
    """Send records of INFO and above to standard error.

    `chosen` holds for processes that this one starts, too; without it the format is that of the
    process that started this one.
    """
    if chosen is not None:
        os.environ[FORMAT_VARIABLE] = chosen
    inherited = os.environ.get(FORMAT_VARIABLE)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if inherited == "json" else TextFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])

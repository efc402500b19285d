"""From a line to a request, or to what is wrong with the line."""

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import msgspec

from nsa_serve.batch.reading import MAX_LINE_BYTES, Line

ENDPOINTS = ("/v1/chat/completions", "/v1/completions")
MAX_ID_LENGTH = 512


@dataclass(frozen=True, slots=True)
class BatchRequest:
    """A line that asks for something, whether or not its body is any good."""

    line: Line
    custom_id: str
    url: str
    body: dict[str, Any]

    @property
    def digest(self) -> str:
        """What its ids are made of: a function of the custom_id alone."""
        return digest_of(self.custom_id)

    @property
    def num_sequences(self) -> int:
        """Continuations that it asks for, if its body is good."""
        n, prompt = self.body.get("n"), self.body.get("prompt")
        num_prompts = 1
        if isinstance(prompt, list) and not any(isinstance(item, int) for item in prompt[:1]):
            num_prompts = len(prompt)
        return max(1, num_prompts) * (n if isinstance(n, int) and n > 0 else 1)


class LineFault(Exception):  # noqa: N818 - a finding; the job goes on
    """A line that cannot be sent anywhere; `custom_id` is None unless the line has one to itself.

    The codes are those of OpenAI's batches.
    """

    def __init__(
        self,
        line: Line,
        code: str,
        message: str,
        param: str | None = None,
        custom_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.line, self.code, self.param, self.custom_id = line, code, param, custom_id

    @property
    def digest(self) -> str:
        """What its id is made of: the line's number and content where it has no custom_id."""
        if self.custom_id is not None:
            return digest_of(self.custom_id)
        content = hashlib.blake2b(self.line.data, digest_size=16).hexdigest()
        return digest_of(f"{self.line.number} {content}", kind="line")


def digest_of(text: str, kind: str = "custom_id") -> str:
    """128 bits of it in hexadecimal; kinds do not collide."""
    return hashlib.blake2b(text.encode(), digest_size=16, person=kind.encode()).hexdigest()


def parse(
    line: Line, endpoints: Collection[str] = ENDPOINTS, max_id_length: int = MAX_ID_LENGTH
) -> BatchRequest:
    """The request of a line to one of `endpoints`; raises `LineFault`."""
    if line.too_long:
        text = f"the line is longer than {MAX_LINE_BYTES} bytes"
        raise LineFault(line, "line_too_long", text)
    try:
        value = msgspec.json.decode(line.data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise LineFault(line, "invalid_json_line", f"the line is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise LineFault(line, "invalid_json_line", "the line is not a JSON object")
    custom_id = value.get("custom_id")
    if custom_id is None:
        raise LineFault(line, "missing_required_parameter", "custom_id is missing", "custom_id")
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= max_id_length:
        text = f"custom_id must be a text of 1 to {max_id_length} characters"
        raise LineFault(line, "invalid_custom_id", text, "custom_id")
    _check(line, custom_id, value, endpoints)
    return BatchRequest(line, custom_id, value["url"], value["body"])


def _check(line: Line, custom_id: str, value: dict[str, Any], endpoints: Collection[str]) -> None:
    for name in ("method", "url", "body"):
        if value.get(name) is None:
            text = f"{name} is missing"
            raise LineFault(line, "missing_required_parameter", text, name, custom_id)
    if value["method"] != "POST":
        raise LineFault(line, "invalid_method", "method must be POST", "method", custom_id)
    if value["url"] not in endpoints:
        text = f"url must be {' or '.join(endpoints)}"
        raise LineFault(line, "invalid_url", text, "url", custom_id)
    if not isinstance(value["body"], dict):
        raise LineFault(line, "invalid_body", "body must be an object", "body", custom_id)

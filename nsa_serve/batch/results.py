"""The lines of results: a function of the request and the model, whichever run writes them."""

from dataclasses import dataclass
from typing import Any

import msgspec

from nsa_serve.batch.requests import BatchRequest, LineFault

START = b'{"id":"batch_req_'
"""How every line of ours begins."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the API answers: a JSON body, as it would over HTTP."""

    status: int
    body: bytes
    retry_after: float = 0.0
    """Seconds after which to try again, where the queue is full."""


@dataclass(frozen=True, slots=True)
class Result:
    """A line of the output, its end included."""

    data: bytes
    ok: bool
    num_tokens: int
    """Tokens made."""
    cause: str = ""
    """Why it is no answer."""


def of_answer(request: BatchRequest, answer: Answer, created: int) -> Result:
    """An answer, good or bad, as a line.

    What would differ from run to run is settled: ids come from the custom_id, `created` is the
    job's, and how much of a prompt the prefix cache held is left out.
    """
    body: dict[str, Any] = msgspec.json.decode(answer.body)
    num_tokens, ok, cause = 0, answer.status == 200, ""
    if not ok:
        cause = str(body["error"]["message"])
    else:
        body["id"] = f"{body['id'].partition('-')[0]}-{request.digest}"
        body["created"] = created
        body["usage"].pop("prompt_tokens_details", None)
        _settle_tool_calls(body["choices"], request.digest)
        num_tokens = body["usage"]["completion_tokens"]
    response = {
        "status_code": answer.status,
        "request_id": f"req_{request.digest}",
        "body": body,
    }
    line = _line(request.digest, request.custom_id, response, None)
    return Result(line, ok, num_tokens, cause)


def of_fault(fault: LineFault) -> Result:
    """A line that could not be sent, as an error line that names it."""
    error = {
        "code": fault.code,
        "message": str(fault),
        "param": fault.param,
        "line": fault.line.number,
    }
    return Result(_line(fault.digest, fault.custom_id, None, error), False, 0, str(fault))


def _settle_tool_calls(choices: list[dict[str, Any]], digest: str) -> None:
    for choice in choices:
        for i, call in enumerate(choice.get("message", {}).get("tool_calls") or ()):
            call["id"] = f"call_{digest[:16]}-{choice['index']}-{i}"


def _line(
    digest: str,
    custom_id: str | None,
    response: dict[str, Any] | None,
    error: dict[str, Any] | None,
) -> bytes:
    line = {
        "id": f"batch_req_{digest}",
        "custom_id": custom_id,
        "response": response,
        "error": error,
    }
    return msgspec.json.encode(line) + b"\n"

"""uvicorn's HTTP/1.1 protocol, with a deadline for the head and our own error bodies."""

import asyncio
import sys
from http import HTTPStatus

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from nsa_api.errors import ApiError

SECONDS_TO_CATCH_UP = 0.02
"""To read once more what is late: after a stall of the process, timers come before data."""


class BoundedH11Protocol(H11Protocol):
    """Answers 408 to a head that does not arrive in time, and 400 or 431 to a malformed one."""

    read_timeout = 5.0
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock with the connection."""
        super().connection_made(transport)
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        super().connection_lost(exc)
        self._stop_clock()

    def data_received(self, data: bytes) -> None:
        """Start the clock at a head's first byte, stop it at its last."""
        super().data_received(data)
        self._watch_head()

    def send_400_response(self, msg: str) -> None:
        """Answer a request that h11 could not parse, with the status that h11 suggests."""
        cause = sys.exception()
        status = cause.error_status_hint if isinstance(cause, h11.RemoteProtocolError) else 400
        code = "headers_too_large" if status == 431 else "invalid_http"
        self._refuse(ApiError(status, msg, code=code))

    def _watch_head(self) -> None:
        if self.conn.their_state is not h11.IDLE:
            self._stop_clock()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(self.read_timeout, self._head_may_be_late)

    def _stop_clock(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _head_may_be_late(self) -> None:
        """Read once more before it is."""
        self._deadline = self.loop.call_later(SECONDS_TO_CATCH_UP, self._head_is_late)

    def _head_is_late(self) -> None:
        if self.conn.trailing_data[0]:
            text = "The request's head did not arrive in time"
            self._refuse(ApiError(408, text, code="header_timeout"))
        else:
            self.transport.close()

    def _refuse(self, refusal: ApiError) -> None:
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE) and not self.transport.is_closing():
            body = refusal.body
            head = h11.Response(
                status_code=refusal.status_code,
                headers=[
                    ("content-type", "application/json"),
                    ("content-length", str(len(body))),
                    ("connection", "close"),
                ],
                reason=HTTPStatus(refusal.status_code).phrase.encode(),
            )
            for event in (head, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


def bounded_protocol(read_timeout: float) -> type[BoundedH11Protocol]:
    """The protocol class with this deadline, which uvicorn leaves no other way to pass."""
    return type("BoundedH11Protocol", (BoundedH11Protocol,), {"read_timeout": read_timeout})

"""Requests in flight on the client's side: a bounded number of them, and who waits for which."""

import asyncio
import logging
from collections.abc import Iterable

from nsa_serve.engine.messages import SequenceOutput
from nsa_serve.engine.request import Request
from nsa_serve.engine.retry_times import RetryTimes
from nsa_serve.errors import GenerationError, NsaServeError, QueueFullError, RequestError
from nsa_serve.outputs import RequestOutput

logger = logging.getLogger(__name__)


class Delivery:
    """One request, from the moment its place is reserved, and the wake-ups of its consumer."""

    def __init__(self, request_id: str, num_unfinished: int) -> None:
        self.request_id = request_id
        self.num_unfinished = num_unfinished
        """Places it holds: continuations from which more may come."""
        self.request: Request | None = None
        self.aborted = False
        self._failure: NsaServeError | None = None
        self._has_news = False
        self._waiter: asyncio.Future[None] | None = None
        """Of the one consumer, who waits anew for each token; an Event is for many."""
        self._end = asyncio.Event()

    @property
    def finished(self) -> bool:
        """Whether nothing more will be delivered."""
        return self._end.is_set()

    def notify(self) -> None:
        """Wake the consumer: there is something to take, or nothing more will come."""
        self._has_news = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        if self.num_unfinished == 0 or self._failure is not None:
            self._end.set()

    def fail(self, error: NsaServeError) -> None:
        """Let the consumer's next or present wait raise `error`."""
        self._failure = self._failure or error
        self.notify()

    async def take(self) -> RequestOutput:
        """Wait for something new, and take all of it."""
        if not self._has_news:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        self._has_news = False
        return self._taken()

    async def take_whole(self) -> RequestOutput:
        """Wait for the end, and take all there is."""
        await self._end.wait()
        return self._taken()

    def _taken(self) -> RequestOutput:
        if self._failure is not None:
            raise self._failure
        assert self.request is not None
        return self.request.take()


class InFlight:
    """All requests in flight; `num_seqs` of their continuations run at once, `max_queued` wait."""

    def __init__(self, num_seqs: int, max_queued: int) -> None:
        self.num_unfinished = 0
        self.num_seqs = num_seqs
        self._max_queued = max_queued
        self._retry_times = RetryTimes(self.limit)
        self._by_request: dict[str, Delivery] = {}
        self._by_sequence: dict[int, Delivery] = {}

    @property
    def limit(self) -> int:
        """Continuations that may be unfinished at once."""
        return self.num_seqs + self._max_queued

    @property
    def _full(self) -> bool:
        return self.num_unfinished >= self.num_seqs

    def check_room(self, n: int, num_coming: int = 0) -> None:
        """Raise QueueFullError if n more do not fit beside those who come in before them."""
        self._retry_times.observe(full=self._full)
        num_taken = self.num_unfinished + num_coming
        if num_taken + n > self.limit:
            raise QueueFullError(
                f"{num_taken} of {self.limit} places are taken",
                retry_after=self._retry_times.next(max(0, num_taken - self.num_seqs), n),
            )

    def reserve(self, request_id: str, n: int) -> Delivery:
        """Take a place for each of n continuations; raises QueueFullError if there are not n."""
        if request_id in self._by_request:
            raise RequestError("a request of this id is in flight", param="request_id")
        if n > self.limit:
            raise RequestError(f"n is {n}, but only {self.limit} places exist", param="n")
        self.check_room(n)
        self.num_unfinished += n
        delivery = self._by_request[request_id] = Delivery(request_id, n)
        return delivery

    def submit(self, delivery: Delivery, request: Request) -> bool:
        """Expect the outputs of a request's sequences; False if it was aborted before."""
        delivery.request = request
        if delivery.aborted:
            request.abort()
            delivery.notify()
            return False
        for sequence_id in request.sequence_ids:
            self._by_sequence[sequence_id] = delivery
        return True

    def push(self, outputs: Iterable[SequenceOutput]) -> list[int]:
        """Deliver what a step gave; the sequences that the core may stop now."""
        stopped: list[int] = []
        full, num_unfinished = self._full, self.num_unfinished
        for output in outputs:
            delivery = self._by_sequence.get(output.sequence_id)
            if delivery is not None:
                stopped += self._push(delivery, output)
        self._retry_times.observe(full=full, num_finished=num_unfinished - self.num_unfinished)
        return stopped

    def abort(self, request_id: str) -> list[int]:
        """End a request with finish reason abort; its sequences that the core may stop."""
        delivery = self._by_request.get(request_id)
        if delivery is None:
            return []
        delivery.aborted = True
        unfinished = self._drop_sequences(delivery)
        if delivery.request is not None:
            delivery.request.abort()
            delivery.notify()
        return unfinished

    def place_of(self, sequence_id: int) -> tuple[str, int] | None:
        """The request of a sequence that is not finished, and the index of its continuation."""
        delivery = self._by_sequence.get(sequence_id)
        if delivery is None or delivery.request is None:
            return None
        return delivery.request_id, delivery.request.sequence_ids.index(sequence_id)

    def first_unfinished(self, request_id: str) -> int | None:
        """The first sequence of a request from which more is expected."""
        delivery = self._by_request.get(request_id)
        if delivery is None or delivery.request is None:
            return None
        return next((i for i in delivery.request.sequence_ids if i in self._by_sequence), None)

    def abort_all(self) -> list[int]:
        """Abort every request."""
        return [i for request_id in list(self._by_request) for i in self.abort(request_id)]

    def fail_all(self, error: type[NsaServeError], text: str) -> None:
        """Let every request raise."""
        for delivery in self._by_request.values():
            self._drop_sequences(delivery)
            delivery.fail(error(text))

    def release(self, delivery: Delivery) -> list[int]:
        """Forget a request; its sequences that the core may stop."""
        del self._by_request[delivery.request_id]
        return self._drop_sequences(delivery)

    def _push(self, delivery: Delivery, output: SequenceOutput) -> list[int]:
        request = delivery.request
        assert request is not None
        try:
            finished = request.push(output)
        except Exception as error:
            logger.error("an output could not be made text", exc_info=error)
            request.error = GenerationError("internal error while making text of the output")
        if request.error is not None:
            unfinished = self._drop_sequences(delivery)
            delivery.fail(request.error)
            return unfinished
        if finished:
            del self._by_sequence[output.sequence_id]
            delivery.num_unfinished -= 1
            self.num_unfinished -= 1
        if finished or output.new_token_ids:
            delivery.notify()
        return [output.sequence_id] if finished and output.finish_reason is None else []

    def _drop_sequences(self, delivery: Delivery) -> list[int]:
        """Give back the places of a request and expect nothing more of its sequences."""
        self._retry_times.observe(full=self._full)
        self.num_unfinished -= delivery.num_unfinished
        delivery.num_unfinished = 0
        sequence_ids = delivery.request.sequence_ids if delivery.request is not None else ()
        return [i for i in sequence_ids if self._by_sequence.pop(i, None) is not None]

"""Batches beside interactive requests, which go first."""

import asyncio

from fastapi import FastAPI

from nsa_api.batches.direct import DirectApi
from nsa_api.schemas import INT32_MAX

_POLL_SECONDS = 0.02
_BUSY_REASONS = ("draining", "starting", "engine_dead")


class OnlineApi(DirectApi):
    """Leaves a quarter of the engine's places free, and adds nothing while anybody waits."""

    def __init__(self, app: FastAPI, *, salt: bytes) -> None:
        super().__init__(app, salt=salt, priority=INT32_MAX)
        self._capacity = 1

    @property
    def capacity(self) -> int:
        """Continuations to have in flight at once."""
        if self.state.not_ready() not in _BUSY_REASONS:
            self._capacity = max(1, self.state.engine().info.max_num_seqs * 3 // 4)
        return self._capacity  # while there is no engine, that of the last

    async def ready(self) -> None:
        """Wait until the engine runs and nobody is queued."""
        while not self._has_room():
            await asyncio.sleep(_POLL_SECONDS)

    def _has_room(self) -> bool:
        if self.state.not_ready() in _BUSY_REASONS:
            return False
        # Without a request in flight no step is made, and the last step's figures are old.
        return not self.state.num_in_flight or not self.state.engine().stats.num_waiting

"""Notices that work waits and no step ends, and logs where the engine process stands."""

import asyncio
import logging
from typing import Protocol

from nsa_api.state import ServerState

logger = logging.getLogger(__name__)

_SECONDS_TO_ANSWER = 1.0


class Stacks(Protocol):
    """The part of an engine that can say where its process stands."""

    def ask_for_stacks(self) -> None:
        """Let the engine process write down the stacks of its threads."""

    def read_stacks(self) -> str:
        """What it wrote since it was read last."""

    def process_state(self) -> str:
        """What the system says of the process."""


class Watchdog:
    """Looks now and then; tells once of each time that the engine is stuck, and of its end."""

    def __init__(self, state: ServerState, engine: Stacks) -> None:
        self._state, self._engine = state, engine

    async def run(self) -> None:
        """Watch until cancelled."""
        pause = min(1.0, self._state.settings.stuck_timeout / 4)
        was_stuck = False
        while True:
            await asyncio.sleep(pause)
            is_stuck = self._state.not_ready() == "stuck"
            if is_stuck and not was_stuck:
                await self._tell()
            elif was_stuck and not is_stuck:
                self._tell_of_end()
            was_stuck = is_stuck

    async def _tell(self) -> None:
        self._state.metrics.on_stall()
        self._engine.ask_for_stacks()
        await asyncio.sleep(_SECONDS_TO_ANSWER)
        stacks = self._engine.read_stacks() or "(it does not answer)"
        logger.error(
            "no step has ended for %g s while %d requests wait; the engine process is %s:\n%s",
            self._state.settings.stuck_timeout,
            self._state.num_in_flight,
            self._engine.process_state(),
            stacks,
        )

    def _tell_of_end(self) -> None:
        logger.warning("the engine is no longer stuck")
        if late := self._engine.read_stacks():
            logger.warning("what the engine process answered late:\n%s", late)

"""Checks that the page pool adds up, at idle moments, for a small share of the time of steps."""

import time
from collections.abc import Callable

from nsa_serve.engine.core import EngineCore
from nsa_serve.engine.messages import StepOutputs

LARGEST_SHARE = 0.01
"""Of the time of steps, for checks."""
_SHARE = LARGEST_SHARE / 2
"""So that a check may take twice as long as the one before."""


class IdleCheck:
    """Steps a core and checks its pool, which takes time for every page, where that is little.

    A check waits until the steps since the last one took so long that it, if it takes no longer
    than that, is the share of them; the first is made at once, while nobody waits for a step.
    """

    def __init__(self, core: EngineCore, clock: Callable[[], float] = time.perf_counter) -> None:
        self._core = core
        self._clock = clock
        self._step_seconds = 0.0
        """Of the steps since the last check."""
        self._check()

    def step(self) -> StepOutputs:
        """A step of the core."""
        began = self._clock()
        outputs = self._core.step()
        self._step_seconds += self._clock() - began
        return outputs

    def idle(self) -> None:
        """To be called where there is nothing else to do."""
        if self._check_seconds <= _SHARE * self._step_seconds:
            self._check()

    def _check(self) -> None:
        began = self._clock()
        self._core.check_integrity()
        self._check_seconds = self._clock() - began
        self._step_seconds = 0.0

"""Threads that compile grammars while others wait for tokens."""

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

_NICE = 10
"""A tenth of the processor beside a thread that streams, where both want all of it; on an idle one,
whatever it takes."""


def grammar_threads(count: int) -> ThreadPoolExecutor:
    """Threads that give way to all others of the machine, as far as the system knows threads'
    priorities (Linux)."""
    return ThreadPoolExecutor(count, "grammar", _give_way)


def _give_way() -> None:
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)

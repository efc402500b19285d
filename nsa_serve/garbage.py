"""Garbage collection that does not stop a process for long."""

import gc


def keep_all() -> None:
    """Keep what there is now for good, so that no later collection walks it.

    To be called once everything is loaded: a full collection, one in a few seconds under load, then
    takes as long as what requests made, not as all modules, schemas and weights.
    """
    gc.collect()
    gc.freeze()

"""Sequences that wait for a running one to compute the pages that both need.

Continuations of one prompt arrive together, before any page of it is in the prefix index. The
first computes the prompt; the others wait for it instead of computing the same once more. They
wait only while it runs: when it ends or is preempted they go on by themselves, and as long as it
runs its chunks are bounded, so nobody waits forever.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from nsa_scheduler.sequence import Sequence


@dataclass(slots=True, frozen=True)
class Waiter:
    """A sequence that waits until its owner has computed tokens [0, end)."""

    sequence: Sequence
    end: int
    since: int
    """Step in which the wait began."""


class PrefillSharing:
    """Knows which hashes running sequences are about to compute, and who waits for them."""

    def __init__(self, page_size: int) -> None:
        self._page_size = page_size
        self._owner_of: dict[bytes, Sequence] = {}
        self._waiters: dict[Sequence, list[Waiter]] = {}
        self._awaited: dict[Sequence, Sequence] = {}

    def __len__(self) -> int:
        return len(self._awaited)

    def waiters(self, owner: Sequence) -> Iterable[Waiter]:
        """Those who wait for `owner`."""
        return self._waiters.get(owner, ())

    def begin(self, owner: Sequence, hashes: Iterable[bytes]) -> None:
        """`owner` is going to compute these pages."""
        for page_hash in hashes:
            self._owner_of.setdefault(page_hash, owner)

    def join(self, sequence: Sequence, hashes: list[bytes], num_hits: int, step: int) -> bool:
        """Let the sequence wait if its page after the hits is being computed; say whether."""
        end = num_hits
        while end < len(hashes) and hashes[end] in self._owner_of:
            end += 1
        if end == num_hits:
            return False
        owner = self._owner_of[hashes[end - 1]]
        waiter = Waiter(sequence, end * self._page_size, step)
        self._waiters.setdefault(owner, []).append(waiter)
        self._awaited[sequence] = owner
        return True

    def leave(self, sequence: Sequence) -> bool:
        """Forget a waiting sequence; say whether it waited here."""
        owner = self._awaited.pop(sequence, None)
        if owner is None:
            return False
        self._keep(owner, [w for w in self._waiters[owner] if w.sequence is not sequence])
        return True

    def computed(self, owner: Sequence, hashes: Iterable[bytes]) -> list[Sequence]:
        """`owner` has computed these pages; return those who need not wait any more."""
        self._disown(owner, hashes)
        waiters = self._waiters.get(owner)
        if waiters is None:
            return []
        self._keep(owner, [w for w in waiters if w.end > owner.num_computed])
        return self._release(w for w in waiters if w.end <= owner.num_computed)

    def stop(self, owner: Sequence, hashes: Iterable[bytes]) -> list[Sequence]:
        """`owner` will not compute these pages, its remaining ones; return who waited for it."""
        self._disown(owner, hashes)
        return self._release(self._waiters.pop(owner, ()))

    def check_integrity(self, running: Iterable[Sequence]) -> None:
        """Raise `AssertionError` if somebody waits for a sequence that does not run."""
        owners = set(running)
        assert set(self._owner_of.values()) <= owners, "an owner of pages does not run"
        assert set(self._waiters) <= owners, "a sequence waits for one that does not run"
        waiting = {w.sequence: owner for owner, ws in self._waiters.items() for w in ws}
        assert waiting == self._awaited, "waiters and awaited owners disagree"

    def _disown(self, owner: Sequence, hashes: Iterable[bytes]) -> None:
        for page_hash in hashes:
            if self._owner_of.get(page_hash) is owner:
                del self._owner_of[page_hash]

    def _keep(self, owner: Sequence, waiters: list[Waiter]) -> None:
        if waiters:
            self._waiters[owner] = waiters
        else:
            del self._waiters[owner]

    def _release(self, waiters: Iterable[Waiter]) -> list[Sequence]:
        released = [waiter.sequence for waiter in waiters]
        for sequence in released:
            del self._awaited[sequence]
        return released

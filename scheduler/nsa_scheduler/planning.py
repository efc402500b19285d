"""How one step's tokens are shared among the sequences that run."""

from collections.abc import Iterable

from nsa_scheduler.output import ScheduledSequence
from nsa_scheduler.policy import RankOf
from nsa_scheduler.sequence import Sequence
from nsa_scheduler.sharing import PrefillSharing


class StepPlanner:
    """Decoding sequences first, one token each; the rest of the budget to those catching up.

    These go shortest remaining first within a class, where each step of age counts as `ageing`
    tokens. So a sequence with L tokens to go is overtaken only by those admitted less than
    L / ageing steps after it. With `ageing` = B, the tokens of a step, that is as many steps as it
    needs alone, and with at most n sequences running, of at most M tokens each, it has caught up
    ⌈L / B⌉ + ⌈n·M / (B − n + 1)⌉ steps after admission, whatever arrives. A sequence that others
    wait for is as urgent as the most urgent of them.
    """

    def __init__(self, rank: RankOf, sharing: PrefillSharing, ageing: int) -> None:
        self._rank = rank
        self._sharing = sharing
        self._ageing = ageing

    def plan(self, running: Iterable[Sequence], budget: int) -> list[ScheduledSequence]:
        """Share out `budget` tokens, at least one for each sequence that runs.

        Every sequence's pages cover its tokens already.
        """
        decoding: list[Sequence] = []
        catching_up: list[Sequence] = []
        for seq in running:
            num_tokens = len(seq.token_ids)
            decodes = num_tokens - seq.num_computed == 1 and num_tokens > seq.num_prompt_tokens
            (decoding if decodes else catching_up).append(seq)
        items = [ScheduledSequence(seq, seq.num_computed, 1) for seq in decoding]
        if catching_up:
            items += self._chunks(catching_up, budget - len(decoding))
        return items

    def _chunks(self, catching_up: list[Sequence], budget: int) -> list[ScheduledSequence]:
        items: list[ScheduledSequence] = []
        for seq in sorted(catching_up, key=self._urgency):
            if budget == 0:
                break
            num_tokens = min(seq.num_behind, budget)
            items.append(ScheduledSequence(seq, seq.num_computed, num_tokens))
            budget -= num_tokens
        return items

    def _urgency(self, seq: Sequence) -> tuple[int, int]:
        """(class, tokens to go and age in one figure): the lowest goes first.

        The figure leaves out the present step, which is the same for all.
        """
        own = self._rank(seq)[0], seq.num_tokens + self._ageing * seq.admitted_step
        inherited = (
            (self._rank(waiter.sequence)[0], waiter.end + self._ageing * waiter.since)
            for waiter in self._sharing.waiters(seq)
        )
        most_urgent_class, end = min((own, *inherited))
        return most_urgent_class, end - seq.num_computed

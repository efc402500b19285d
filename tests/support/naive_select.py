"""Importance of blocks and their selection, as the definition says it, block by block."""

import math

from nsa_serve.config import NSAConfig

SlotMass = list[dict[int, float]]
"""For each query head of a group: what each visible slot has."""


def first_token(nsa: NSAConfig, slot: int) -> int:
    """The first token that a slot reads; negative in the padding."""
    return (slot + 1) * nsa.compress_stride - nsa.compress_block


def slot_exists(nsa: NSAConfig, slot: int) -> bool:
    """Without left padding a slot reads no token before the first."""
    return nsa.padding == "left" or first_token(nsa, slot) >= 0


def slot_visible(nsa: NSAConfig, slot: int, t: int) -> bool:
    """Whether a query at t sees it."""
    last = (slot + 1) * nsa.compress_stride - 1
    return slot_exists(nsa, slot) and (last < t if nsa.visibility == "strict" else last <= t)


def importance(
    nsa: NSAConfig, block: int, probs: SlotMass, logits: SlotMass, t: int
) -> float | None:
    """The score of a block for a query at t; None where it has none."""
    if nsa.importance == "logit_mean":
        return _logit_mean(nsa, block, logits, t)
    strides: dict[int, int] = {}
    for slot in probs[0]:
        first = first_token(nsa, slot)
        for start in range(first, first + nsa.compress_block, nsa.compress_stride):
            if start >= 0 and start // nsa.select_block == block:
                strides[slot] = strides.get(slot, 0) + 1
    mass = {slot: sum(head[slot] for head in probs) for slot in strides}
    if nsa.importance == "max_pool":
        return max(mass.values(), default=0.0)
    return sum(strides[slot] * mass[slot] for slot in strides)


def _logit_mean(nsa: NSAConfig, block: int, logits: SlotMass, t: int) -> float | None:
    """Over the slots that complete in the block, once the query sees all that exist."""
    per_block = nsa.select_block // nsa.compress_stride
    own = range(block * per_block, (block + 1) * per_block)
    due = [slot for slot in own if slot_exists(nsa, slot)]
    if not due or not all(slot_visible(nsa, slot, t) for slot in due):
        return None
    return sum(head[slot] for head in logits for slot in due) / (len(due) * len(logits))


def select(nsa: NSAConfig, scores: list[float | None], t: int) -> set[int]:
    """The blocks that a query at t reads; scores are of the blocks up to its own."""
    current = t // nsa.select_block
    assert len(scores) == current + 1
    if t < nsa.dense_len:
        return set(range(current + 1))
    forced = {j for j in range(current + 1) if j < nsa.init_blocks}
    forced |= {j for j in range(current + 1) if current - j < nsa.local_blocks}
    ranked = _ranked(nsa, scores)
    if nsa.selection == "half_merge" and current >= nsa.num_selected:
        half = nsa.num_selected // 2
        border = nsa.num_selected * (current // nsa.num_selected)
        old = _top(nsa, [j for j in ranked if j < border], {j for j in forced if j < border}, half)
        new = _top(nsa, [j for j in ranked if j >= border], forced - set(range(border)), half)
        return old | new | forced
    return _top(nsa, ranked, forced, nsa.num_selected) | forced


def _ranked(nsa: NSAConfig, scores: list[float | None]) -> list[int]:
    """Blocks with a score above the floor: the highest first, the lower index on a tie."""
    scored = {j: score for j, score in enumerate(scores) if score is not None}
    if nsa.selection_floor > 0.0 and scored:
        top = max(scored.values())
        total = sum(math.exp(score - top) for score in scored.values())
        scored = {
            j: score
            for j, score in scored.items()
            if math.exp(score - top) / total > nsa.selection_floor
        }
    return sorted(scored, key=lambda j: (-scored[j], j))


def _top(nsa: NSAConfig, ranked: list[int], forced: set[int], n: int) -> set[int]:
    """The n best; forced blocks take their places first if they count."""
    rest = [j for j in ranked if j not in forced]
    return set(rest[: n - len(forced) if nsa.forced_counted else n]) | forced

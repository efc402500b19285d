"""Exact top-n with forced blocks, ties to the lower index, and the half-merge rule."""

from collections.abc import Sequence

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nsa_kernels.select.reference import block_mask, select_blocks
from nsa_kernels.spec import SparseSpec
from tests.support.specs import paper_spec

NOTHING_FORCED = {"init_blocks": 0, "local_blocks": 0}


def chosen(spec: SparseSpec, scores: Sequence[float], position: int) -> list[int]:
    ids = select_blocks(spec, torch.tensor(scores, dtype=torch.float32), torch.tensor(position))
    kept = [i for i in ids.tolist() if i >= 0]
    assert ids.tolist()[: len(kept)] == sorted(set(kept)), "ascending, each once, -1 behind"
    return kept


def brute_force(spec: SparseSpec, scores: Sequence[float], position: int) -> list[int]:
    """By the definition: forced blocks, then a sort by (score, lower index)."""
    current = position // spec.select_block
    seen = range(current + 1)
    forced = {j for j in seen if j < spec.init_blocks or j > current - spec.local_blocks}

    def best(candidates: Sequence[int], n: int) -> set[int]:
        inside = forced & set(candidates)
        rest = sorted(set(candidates) - forced, key=lambda j: (-scores[j], j))
        rest = [j for j in rest if scores[j] > float("-inf")]
        if spec.forced_counted:
            return inside | set(rest[: max(n - len(inside), 0)])
        return inside | set(rest[:n])

    n = spec.num_selected
    if spec.half_merge and current >= n:
        border = n * (current // n)
        return sorted(best(range(border), n // 2) | best(range(border, current + 1), n // 2))
    return sorted(best(seen, n))


def test_the_lower_index_wins_a_tie() -> None:
    spec = paper_spec(num_selected=3, **NOTHING_FORCED)
    assert chosen(spec, [0.5] * 9, 64 * 9 - 1) == [0, 1, 2]
    assert chosen(spec, [0.1, 0.5, 0.7, 0.5, 0.5, 0.7, 0.5], 64 * 7 - 1) == [1, 2, 5]


def test_neighbouring_floats_are_told_apart() -> None:
    """Scores one unit in the last place apart, ascending with the index, at every magnitude."""
    spec = paper_spec(num_selected=4, **NOTHING_FORCED)
    for base in (1e-38, 1e-6, 1.0, 3e38):
        steps = [torch.tensor(base)]
        for _ in range(39):
            steps.append(steps[-1].nextafter(torch.tensor(torch.inf)))
        scores = [float(step) for step in steps]
        assert len(set(scores)) == 40
        assert chosen(spec, scores, 64 * 40 - 1) == [36, 37, 38, 39]


def test_zero_scores_lose_to_the_smallest_denormal() -> None:
    spec = paper_spec(num_selected=2, **NOTHING_FORCED)
    assert chosen(spec, [0.0, 0.0, 0.0, 1e-45], 64 * 4 - 1) == [0, 3]


def test_forced_blocks_take_their_places_first() -> None:
    scores = [0.0, 9.0, 8.0, 7.0, 6.0, 0.0, 0.0]
    position = 64 * 7 - 1
    assert chosen(paper_spec(num_selected=4), scores, position) == [0, 1, 5, 6]
    on_top = paper_spec(num_selected=4, forced_counted=False)
    assert chosen(on_top, scores, position) == [0, 1, 2, 3, 4, 5, 6]


def test_blocks_after_the_query_are_never_chosen() -> None:
    spec = paper_spec(num_selected=4, **NOTHING_FORCED)
    assert chosen(spec, [0.1, 0.2, 9.0, 9.0, 9.0], 64 * 2 - 1) == [0, 1]
    assert chosen(spec, [0.1, 0.2, 9.0, 9.0, 9.0], 64 * 2) == [0, 1, 2]


def test_a_block_without_a_score_is_chosen_only_if_forced() -> None:
    missing = float("-inf")
    spec = paper_spec(num_selected=4, init_blocks=0, local_blocks=1)
    assert chosen(spec, [missing, 0.3, missing, missing], 64 * 4 - 1) == [1, 3]


def test_the_floor_drops_candidates_by_their_softmax_weight() -> None:
    spec = paper_spec(num_selected=4, selection_floor=0.1, **NOTHING_FORCED)
    scores = torch.tensor([0.6, 0.25, 0.05, 0.1001]).log().tolist()
    assert chosen(spec, scores, 64 * 4 - 1) == [0, 1, 3]


def test_positions_below_dense_len_read_every_block() -> None:
    spec = paper_spec(num_selected=3, dense_len=64 * 5 + 10)
    assert chosen(spec, [1.0] * 6, 64 * 5 + 9) == [0, 1, 2, 3, 4, 5]
    assert chosen(spec, [1.0] * 6, 64 * 5 + 10) == [0, 4, 5]


def test_half_merge_takes_half_of_the_new_run_and_half_of_the_old() -> None:
    spec = paper_spec(num_selected=16, init_blocks=0, local_blocks=1, half_merge=True)
    scores = [float(i) for i in range(40)]
    found = chosen(spec, scores, 64 * 36)
    assert found == [*range(24, 32), 32, 33, 34, 35, 36]
    assert chosen(spec, scores, 64 * 16 - 1) == list(range(16))
    assert chosen(spec, scores, 64 * 16) == [*range(8, 16), 16]


@settings(max_examples=300, deadline=None)
@given(
    levels=st.integers(1, 6),
    num_blocks=st.integers(1, 40),
    half_n=st.integers(1, 8),
    forced=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    counted=st.booleans(),
    half_merge=st.booleans(),
    seed=st.integers(0, 10_000),
)
def test_any_scores_are_selected_like_a_sort(
    levels: int,
    num_blocks: int,
    half_n: int,
    forced: tuple[int, int],
    counted: bool,
    half_merge: bool,
    seed: int,
) -> None:
    """Few levels make many ties; a level may be a missing score."""
    init, local = forced
    n = 2 * half_n
    while counted and init + local > n // (2 if half_merge else 1):
        init, local = max(init - 1, 0), min(local, 1)
    spec = paper_spec(
        num_selected=n,
        init_blocks=init,
        local_blocks=max(local, int(half_merge)),
        forced_counted=counted,
        half_merge=half_merge,
    )
    generator = torch.Generator().manual_seed(seed)
    level = torch.randint(0, levels + 1, (num_blocks,), generator=generator).float()
    scores = torch.where(level == levels, -torch.inf, level / 8).tolist()
    position = 64 * num_blocks - 1 - int(torch.randint(0, 64, (1,), generator=generator))
    assert chosen(spec, scores, position) == brute_force(spec, scores, position)


def test_rows_of_a_batch_are_selected_independently() -> None:
    spec = paper_spec(num_selected=4)
    scores = torch.rand(7, 2, 9, generator=torch.Generator().manual_seed(0))
    positions = torch.tensor([0, 63, 64, 200, 300, 500, 575])
    together = select_blocks(spec, scores, positions[:, None])
    mask = block_mask(together, 9)
    for i, position in enumerate(positions.tolist()):
        for head in range(2):
            expected = brute_force(spec, scores[i, head].tolist(), position)
            assert mask[i, head].nonzero().flatten().tolist() == expected

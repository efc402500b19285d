"""Block importance: the weights of equation 9, pooling, and logit means."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nsa_kernels.compressed.reference import visible_slots
from nsa_kernels.select.reference import block_scores
from nsa_kernels.spec import SparseSpec
from tests.support.specs import paper_spec


def scores_of_probs(spec: SparseSpec, probs: torch.Tensor, num_blocks: int) -> torch.Tensor:
    visible = torch.ones(probs.shape[-1], dtype=torch.bool)
    return block_scores(spec, probs.log(), probs, visible, num_blocks)


def test_equation_9_read_with_token_numbering() -> None:
    """Compressed token i of the paper is slot i + 1: its 32 tokens start at 16·i."""
    num_blocks, num_slots = 6, 24
    slots = torch.rand(1, num_slots, generator=torch.Generator().manual_seed(0))
    slots[:, 0] = 0.0  # slot 0 would read tokens before the first
    p = {i: float(slots[0, i + 1]) if i + 1 < num_slots else 0.0 for i in range(-1, num_slots)}
    expected = [
        p[4 * j - 1] + 2 * p[4 * j] + 2 * p[4 * j + 1] + 2 * p[4 * j + 2] + p[4 * j + 3]
        for j in range(num_blocks)
    ]
    found = scores_of_probs(paper_spec(), slots, num_blocks)
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-6, atol=1e-7)


def test_mass_of_one_slot_goes_to_the_blocks_that_its_tokens_overlap() -> None:
    spec = paper_spec()
    for slot in range(1, 24):
        probs = torch.zeros(1, 24)
        probs[0, slot] = 1.0
        tokens = range(slot * 16 - 16, slot * 16 + 16)
        expected = [sum(t // 64 == j for t in tokens) / 16 for j in range(6)]
        assert scores_of_probs(spec, probs, 6).tolist() == expected


def test_mass_is_summed_over_the_group() -> None:
    probs = torch.rand(3, 24, generator=torch.Generator().manual_seed(1))
    together = scores_of_probs(paper_spec(), probs, 6)
    apart = [scores_of_probs(paper_spec(), probs[i : i + 1], 6) for i in range(3)]
    torch.testing.assert_close(together, apart[0] + apart[1] + apart[2])


def test_max_pool_takes_the_largest_of_five_slots() -> None:
    probs = torch.rand(1, 25, generator=torch.Generator().manual_seed(2))
    found = scores_of_probs(paper_spec(importance="max_pool"), probs, 6)
    assert found.tolist() == [float(probs[0, 4 * j : 4 * j + 5].max()) for j in range(6)]


def test_logit_mean_scores_a_block_only_once_all_its_slots_are_visible() -> None:
    spec = paper_spec(importance="logit_mean")
    logits = torch.randn(2, 16, generator=torch.Generator().manual_seed(3))
    for position in (62, 63, 127, 190, 255):
        visible = visible_slots(spec, torch.tensor(position), 16)
        masked = logits.masked_fill(~visible, -torch.inf)
        found = block_scores(spec, masked, masked.softmax(-1), visible, 4)
        for block in range(4):
            slots = [s for s in range(4 * block, 4 * block + 4) if s >= spec.first_slot]
            if position >= 64 * block + 63:
                torch.testing.assert_close(found[block], logits[:, slots].mean())
            else:
                assert found[block] == -torch.inf


@settings(max_examples=150, deadline=None)
@given(
    strides_per_slot=st.integers(1, 5),
    slots_per_block=st.integers(1, 5),
    num_blocks=st.integers(1, 7),
    num_slots=st.integers(0, 30),
    left=st.booleans(),
    max_pool=st.booleans(),
    seed=st.integers(0, 100),
)
def test_any_lengths_score_like_counting_strides(
    strides_per_slot: int,
    slots_per_block: int,
    num_blocks: int,
    num_slots: int,
    left: bool,
    max_pool: bool,
    seed: int,
) -> None:
    spec = paper_spec(
        compress_block=2 * strides_per_slot,
        compress_stride=2,
        select_block=2 * slots_per_block,
        first_slot=0 if left else strides_per_slot - 1,
        importance="max_pool" if max_pool else "prob_sum",
    )
    probs = torch.rand(2, num_slots, generator=torch.Generator().manual_seed(seed))
    probs[:, : spec.first_slot] = 0.0
    found = scores_of_probs(spec, probs, num_blocks)
    for block in range(num_blocks):
        parts = [0.0]
        for slot in range(num_slots):
            strides = range(slot + 1 - strides_per_slot, slot + 1)
            count = sum(u // slots_per_block == block for u in strides if u >= 0)
            mass = float(probs[:, slot].sum())
            parts.append((mass if count else 0.0) if max_pool else count * mass)
        expected = max(parts) if max_pool else sum(parts)
        assert abs(float(found[block]) - expected) < 1e-5

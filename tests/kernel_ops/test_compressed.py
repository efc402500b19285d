"""Attention over compressed slots: what is seen, what nothing seen gives, and NaN kept a NaN."""

import pytest
import torch

from nsa_kernels.compressed.reference import compressed_attention, visible_slots
from tests.support.specs import paper_spec


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("strict", [False, True])
def test_a_slot_is_seen_from_the_token_that_completes_it(strict: bool) -> None:
    spec = paper_spec(strict=strict)
    for position in range(100):
        seen = visible_slots(spec, torch.tensor(position), 6).tolist()
        assert seen == [
            s >= 1 and (16 * s + 15 < position if strict else 16 * s + 15 <= position)
            for s in range(6)
        ]


def test_no_visible_slot_gives_zeros_and_no_nan() -> None:
    visible = torch.zeros(1, 3, 4, dtype=torch.bool)
    q, k, v = random(1, 3, 8, seed=0), random(1, 4, 8, seed=1), random(1, 4, 5, seed=2)
    out, _, probs = compressed_attention(q, k, v, visible, 1.0)
    assert out is not None
    assert not bool(out.any())
    assert not bool(probs.any())


def test_no_visible_slot_leaves_the_memory() -> None:
    visible = torch.zeros(1, 3, 4, dtype=torch.bool)
    q, k, v = random(1, 3, 8, seed=0), random(1, 4, 8, seed=1), random(1, 4, 5, seed=2)
    memory = random(1, 2, 8, seed=3), random(1, 2, 5, seed=4)
    out, _, probs = compressed_attention(q, k, v, visible, 0.5, memory)
    assert out is not None
    expected = (q @ memory[0].mT * 0.5).softmax(-1) @ memory[1]
    torch.testing.assert_close(out, expected)
    assert not bool(probs.any())


def test_memory_takes_its_share_of_the_mass() -> None:
    visible = torch.tensor([[[True, False, True]]])
    q, k, v = random(1, 2, 8, seed=0), random(1, 3, 8, seed=1), random(1, 3, 8, seed=2)
    memory = random(1, 1, 8, seed=3), random(1, 1, 8, seed=4)
    out, _, probs = compressed_attention(q, k, v, visible, 0.5, memory)
    assert out is not None
    keys, values = torch.cat([memory[0], k[:, [0, 2]]], 1), torch.cat([memory[1], v[:, [0, 2]]], 1)
    weights = (q @ keys.mT * 0.5).softmax(-1)
    torch.testing.assert_close(out, weights @ values)
    torch.testing.assert_close(probs, weights[..., 1:] @ torch.eye(3)[[0, 2]])


def test_a_visible_nan_is_not_turned_into_a_number() -> None:
    q, k, v = random(1, 1, 8, seed=0), random(1, 3, 8, seed=1), random(1, 3, 8, seed=2)
    k[0, 1, 0] = torch.nan
    out, _, _ = compressed_attention(q, k, v, torch.ones(1, 1, 3, dtype=torch.bool), 1.0)
    assert out is not None
    assert bool(out.isnan().all())

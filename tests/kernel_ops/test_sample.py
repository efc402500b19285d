"""Drawn tokens: the kernels against sorting, and both against what rows are built to break."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from nsa_kernels.sample import draw as kernels
from nsa_kernels.sample import penalties as kernels_penalties
from nsa_kernels.sample import reference
from nsa_kernels.sample.params import IN_PROMPT, Penalties, RowParams
from tests.support.written import DEVICE, random

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered", "ignore:invalid value")
Draw = Callable[[Tensor, RowParams], Tensor]
DRAWS: dict[str, Draw] = {"kernels": kernels.draw, "torch": reference.draw}


def row_params(rows: list[dict[str, float]]) -> RowParams:
    """Of rows that say what differs from temperature 1, no filter and number 0.5."""
    names = {"temperature": 1.0, "top_k": 0.0, "top_p": 1.0, "min_p": 0.0, "number": 0.5}
    table = [[{**names, **row}[name] for row in rows] for name in names]
    return RowParams(
        torch.tensor(table, dtype=torch.float64, device=DEVICE),
        any(row.get("top_k", 0) > 0 or row.get("top_p", 1.0) < 1.0 for row in rows),
    )


def mixed_rows(count: int, vocab: int, seed: int) -> list[dict[str, float]]:
    """Any mix of parameters."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for i in range(count):
        a, b, c, d, e = torch.rand(5, generator=generator, dtype=torch.float64).tolist()
        row = {"number": a, "temperature": 0.0 if b < 0.1 else 2 * b}
        if i % 4 and c < 0.6:
            row["top_k"] = float(int(1 + vocab * c**4))
        if i % 4 and d < 0.7:
            row["top_p"] = 0.02 + d
        if e < 0.4:
            row["min_p"] = e / 4
        rows.append(row)
    return rows


@pytest.mark.parametrize("room", [64, 8192])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocab", [5, 1500])
def test_kernels_draw_what_sorting_draws(vocab: int, dtype: torch.dtype, room: int) -> None:
    """With room for all candidates, and with next to none. bfloat16 is full of ties."""
    rows = mixed_rows(8, vocab, seed=vocab + room)
    logits = (random(len(rows), vocab + 3, seed=vocab) * 3).to(dtype)[:, :vocab]
    expected = reference.draw(logits, row_params(rows))
    found = kernels.draw(logits, row_params(rows), room)
    assert found.tolist() == expected.tolist()


@pytest.mark.parametrize("name", DRAWS)
def test_a_row_does_not_depend_on_its_neighbours(name: str) -> None:
    rows = mixed_rows(4, 1200, seed=3)
    logits = random(4, 1200, seed=4) * 2
    together = DRAWS[name](logits, row_params(rows))
    for i in (0, 3):
        alone = DRAWS[name](logits[i : i + 1], row_params(rows[i : i + 1]))
        assert alone.tolist() == together[i : i + 1].tolist()


@pytest.mark.parametrize("name", DRAWS)
def test_greedy_takes_the_highest_and_the_lower_index_on_a_tie(name: str) -> None:
    logits = random(3, 2500, seed=0)
    logits[1, [2400, 123, 1030]] = 99.0
    drawn = DRAWS[name](logits, RowParams(None, filtered=False))
    assert drawn.tolist() == [int(logits[0].argmax()), 123, int(logits[2].argmax())]


@pytest.mark.parametrize("name", DRAWS)
def test_rows_that_are_no_numbers_are_told_and_spoil_no_other(name: str) -> None:
    logits = random(5, 1100, seed=0)
    logits[0, 1050] = torch.nan
    logits[1] = -torch.inf
    logits[2, 7] = torch.inf
    logits[3, :1099] = -torch.inf
    for params in (RowParams(None, filtered=False), row_params([{"top_p": 0.5}] * 5)):
        drawn = DRAWS[name](logits, params)
        assert drawn.tolist()[:4] == [-1, -1, -1, 1099]
        assert 0 <= drawn.tolist()[4] < 1100


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("fields", [{}, {"top_p": 0.9}, {"top_k": 2}, {"min_p": 0.1}])
def test_the_coldest_temperatures_are_greedy(name: str, fields: dict[str, Any]) -> None:
    rows = [{"temperature": t, "number": 0.99, **fields} for t in (1e-45, 1e-38, 1e-8)]
    logits = torch.tensor([[1.3, 2.1, 1.9, -5.0]] * 3, device=DEVICE)
    assert DRAWS[name](logits, row_params(rows)).tolist() == [1, 1, 1]


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("fields", [{}, {"top_p": 0.99}, {"top_k": 60}, {"min_p": 0.5}])
def test_the_numbers_next_to_zero_and_one_never_pick_what_has_no_probability(
    name: str, fields: dict[str, Any]
) -> None:
    logits = torch.full((2, 1400), -torch.inf, device=DEVICE)
    logits[:, [700, 1100]] = torch.tensor([1.0, 1.2], device=DEVICE)
    rows = [{"number": 0.0, **fields}, {"number": 1.0 - 2.0**-53, **fields}]
    assert DRAWS[name](logits, row_params(rows)).tolist() == [700, 1100]


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ({"top_k": 3}, [1, 2, 4]),
        ({"top_k": 4}, [1, 2, 4, 5]),
        ({"top_k": 2}, [2, 4]),
        ({"top_p": 0.6}, [1, 2, 4]),
        ({"top_p": 0.5}, [2, 4]),
        ({"top_p": 1e-9}, [2]),
        ({"top_k": 4, "top_p": 0.8}, [1, 2, 4]),
        ({"top_k": 1}, [2]),
        ({"min_p": 1.0}, [2, 4]),
        ({"min_p": 1.0, "top_k": 1}, [2]),
        ({"top_k": 100}, [0, 1, 2, 3, 4, 5, 6]),
    ],
)
def test_ties_at_a_border_go_to_the_lower_ids(fields: dict[str, float], kept: list[int]) -> None:
    """Of weights 1 · 2, 0.5 · 3 and 0.125 · 2: sixty percent of the mass end within the second."""
    weights = torch.tensor([0.125, 0.5, 1.0, 0.125, 1.0, 0.5, 0.5], device=DEVICE)
    rows = [{"number": (i + 0.5) / 64, **fields} for i in range(64)]
    logits = weights.log().repeat(64, 1)
    drawn = reference.draw(logits, row_params(rows))
    assert sorted(set(drawn.tolist())) == kept
    some = torch.tensor([0, 17, 31, 47, 63], device=DEVICE)
    found = kernels.draw(logits[some], row_params([rows[i] for i in some.tolist()]))
    assert torch.equal(found, drawn[some])


def test_even_numbers_reproduce_the_distribution() -> None:
    logits = torch.tensor([1.3, 0.2, -0.7, 2.1, 1.9, -2.5, 0.9], device=DEVICE)
    rows = [{"number": (i + 0.5) / 300, "temperature": 0.7, "top_k": 5} for i in range(300)]
    drawn = reference.draw(logits.repeat(300, 1), row_params(rows))
    weights = (logits.double() / 0.7).exp()
    weights[[2, 5]] = 0.0
    counts = torch.bincount(drawn, minlength=7) / 300
    torch.testing.assert_close(counts.double(), weights / weights.sum(), rtol=0, atol=1 / 300)


@pytest.mark.parametrize("penalise", [kernels_penalties.penalise, reference.penalise])
def test_penalties_touch_what_was_seen_in_their_rows_and_nothing_else(
    penalise: Callable[[Tensor, Penalties], None],
) -> None:
    logits = random(4, 1100, seed=5)
    logits[2, 1030] = 0.75
    logits[2, 7] = -0.5
    counts = torch.zeros(3, 1100, dtype=torch.int32, device=DEVICE)
    counts[1, 1030] = 3 + IN_PROMPT
    counts[1, 7] = IN_PROMPT
    counts[0, 9] = 1
    before = logits.clone()
    penalties = Penalties(
        torch.tensor([2, 0], dtype=torch.int32, device=DEVICE),
        counts,
        torch.tensor([1, 0], dtype=torch.int32, device=DEVICE),
        torch.tensor([[1.5, 1.0], [0.25, 0.5], [2.0, -3.0]], device=DEVICE),
    )
    penalise(logits, penalties)
    assert logits[2, 1030].item() == 0.5 - 6.25
    assert logits[2, 7].item() == -0.75
    torch.testing.assert_close(logits[0, 9], before[0, 9] + 2.5)
    changed = (logits != before).nonzero().tolist()
    assert changed == [[0, 9], [2, 7], [2, 1030]]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("spread", [0.05, 1.0, 4.0])
@pytest.mark.parametrize("vocab", [49_152, 128_256, 300_000])
def test_large_vocabularies_flat_and_peaked(vocab: int, spread: float, dtype: torch.dtype) -> None:
    """Weights of the two differ in their last bit, so in a million numbers one may fall between."""
    rows = mixed_rows(64, vocab, seed=vocab)
    logits = (random(64, vocab, seed=1) * spread).to(dtype)
    found = kernels.draw(logits, row_params(rows))
    assert int((found != reference.draw(logits, row_params(rows))).sum()) <= 1
    assert torch.equal(kernels.draw(logits[5:6], row_params(rows[5:6])), found[5:6])
    assert torch.equal(kernels.draw(logits, row_params(rows), 16), found)

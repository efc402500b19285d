"""Where NSA overtakes dense attention."""

import pytest

from nsa_serve.bench.crossover import Crossover, crossover

CONTEXTS = [1000, 2000, 4000, 8000]


def test_between_two_points_it_is_where_the_lines_meet() -> None:
    found = crossover(8, CONTEXTS, [10, 10, 10, 10], [5, 5, 20, 40])
    assert (found.batch, found.faster) == (8, "from")
    assert found.context == pytest.approx((2000 * 4000) ** 0.5)


def test_times_that_are_powers_of_the_context_meet_exactly() -> None:
    dense = [context / 3000 for context in CONTEXTS]
    found = crossover(1, CONTEXTS, [1.0] * 4, dense)
    assert found.context == pytest.approx(3000)


def test_the_last_of_several_crossings_counts() -> None:
    found = crossover(1, CONTEXTS, [10, 10, 10, 10], [12, 8, 9, 11])
    assert found.context is not None
    assert 4000 < found.context < 8000


def test_a_tie_is_no_loss() -> None:
    assert crossover(1, [5], [2.0], [2.0]) == Crossover(batch=1, faster="nsa")


@pytest.mark.parametrize(("dense", "faster"), [([9, 9, 9, 9], "dense"), ([11] * 4, "nsa")])
def test_no_crossing(dense: list[float], faster: str) -> None:
    assert crossover(1, CONTEXTS, [10] * 4, dense) == Crossover(batch=1, faster=faster)  # type: ignore[arg-type]

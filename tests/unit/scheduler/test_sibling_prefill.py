"""Continuations of one prompt that arrive together compute it once."""

import pytest

from tests.support.scheduling import Simulation


def computed_tokens(sim: Simulation) -> int:
    total = 0
    while sim.scheduler.has_work:
        total += sim.step().num_tokens
    return total


@pytest.mark.parametrize("n", [2, 8, 32])
@pytest.mark.parametrize("budget", [16, 512])
def test_full_pages_of_the_prompt_are_computed_once(n: int, budget: int) -> None:
    sim = Simulation(num_pages=400, max_num_batched_tokens=budget)
    for _ in range(n):
        sim.add(range(50), 1)
    assert computed_tokens(sim) == 50 + (n - 1) * 2
    sim.assert_outputs()


def test_waiting_sibling_lets_others_pass() -> None:
    sim = Simulation(num_pages=100, max_num_batched_tokens=16)
    sim.add(range(60))
    sibling = sim.add(range(60))
    other = sim.add([7] * 8)
    sim.step()
    assert (sibling.admitted_step, other.admitted_step) == (-1, 1)
    assert sim.scheduler.num_waiting == 1


def test_sibling_with_another_salt_does_not_wait() -> None:
    sim = Simulation(num_pages=100, max_num_batched_tokens=16)
    sim.add(range(60), salt=b"a")
    other = sim.add(range(60), salt=b"b")
    sim.step()
    assert other.admitted_step == 1


def test_sibling_that_may_not_read_does_not_wait() -> None:
    sim = Simulation(num_pages=100, max_num_batched_tokens=16)
    sim.add(range(60))
    reader = sim.add(range(60), may_read_prefix_cache=False)
    sim.step()
    assert reader.admitted_step == 1


@pytest.mark.parametrize("way", ["abort", "abort in flight", "fail", "preempt"])
def test_sibling_goes_on_when_the_one_it_waits_for_stops(way: str) -> None:
    sim = Simulation(num_pages=100, max_num_batched_tokens=16)
    owner = sim.add(range(60))
    sibling = sim.add(range(60))
    sim.step()
    assert sibling.admitted_step == -1
    if way == "abort":
        sim.abort(owner)
    elif way == "preempt":
        sim.scheduler.preempt(owner.sequence_id)
    else:
        batch = sim.begin()
        if way == "fail":
            sim.finish(batch, failed=[owner.sequence_id])
        else:
            sim.abort(owner)
            sim.finish(batch)
    sim.step()
    assert (owner if way == "preempt" else sibling).num_computed > 0
    sim.drain()
    sim.assert_outputs()


def test_aborted_waiting_sibling_is_forgotten() -> None:
    sim = Simulation(max_num_batched_tokens=16)
    sim.add(range(60))
    siblings = [sim.add(range(60)) for _ in range(3)]
    sim.step()
    assert sim.abort(siblings[1]) == [siblings[1]]
    assert sim.scheduler.num_waiting == 2
    sim.drain()
    sim.assert_outputs()
    assert siblings[1].num_output_tokens == 0


def test_short_prompt_is_not_held_up_by_a_long_one_whose_beginning_it_shares() -> None:
    """Short prompts without that beginning keep coming and would go before the long one."""
    sim = Simulation(num_pages=400, max_num_batched_tokens=8, max_num_seqs=8)
    sim.add([*range(8), *[5] * 300])
    for n in range(20):
        sim.add([100 + n] * 8, 1)
    sim.step()
    sharer = sim.add([*range(8), 6], 1)
    for n in range(20):
        sim.add([200 + n] * 8, 1)
    sim.step_until(lambda: sharer.num_output_tokens > 0, limit=30)


def test_sequence_waits_for_the_shared_part_only() -> None:
    sim = Simulation(num_pages=100, max_num_batched_tokens=16)
    sim.add(range(200), 1)
    sibling = sim.add([*range(30), 9, 9], 1)
    sim.step(3)
    assert sibling.num_cached_tokens == 28

"""Scenes built to get stuck: each must go on within two steps, and to its end."""

from collections.abc import Callable

import pytest

from nsa_scheduler import Scheduler, SequenceState
from tests.support.scheduling import Simulation

Scene = Callable[[], Simulation]
SCENES: list[Scene] = []


def scene(build: Scene) -> Scene:
    """Collect a function that returns a simulation in a difficult state."""
    SCENES.append(build)
    return build


@scene
def head_does_not_fit_beside_what_runs() -> Simulation:
    sim = Simulation(num_pages=10)
    sim.add([1] * 20, 8)
    sim.step()
    sim.add([2] * 36, 2)
    sim.add([3] * 2, 2)
    return sim


@scene
def head_needs_the_whole_pool() -> Simulation:
    sim = Simulation(num_pages=5, page_size=4)
    sim.add([1] * 19, 4)
    sim.add([2] * 19, 4)
    return sim


@scene
def watermark_leaves_room_for_nobody() -> Simulation:
    sim = Simulation(num_pages=10, watermark=0.99)
    for n in range(3):
        sim.add([n] * 8, 4)
    return sim


@scene
def everything_is_cached_and_nothing_of_it_hit() -> Simulation:
    sim = Simulation(num_pages=6)
    sim.add([1] * 23, 1)
    sim.drain()
    sim.add([2] * 23, 1)
    return sim


@scene
def everything_is_cached_and_all_but_one_page_hit() -> Simulation:
    sim = Simulation(num_pages=6)
    sim.add([1] * 23, 1)
    sim.drain()
    sim.add([1] * 23, 1)
    sim.add([1] * 20 + [2] * 3, 1)
    return sim


@scene
def prompt_is_cached_to_its_last_token() -> Simulation:
    sim = Simulation(num_pages=6)
    sim.add([1] * 20, 1)
    sim.drain()
    sim.add([1] * 20, 1)
    return sim


@scene
def all_cross_a_page_border_with_no_page_left() -> Simulation:
    sim = Simulation(num_pages=8, watermark=0.0)
    for n in range(8):
        sim.add([n] * 4, 9)
    sim.step()
    return sim


@scene
def alone_and_larger_than_the_pool() -> Simulation:
    sim = Simulation(num_pages=2)
    sim.add([1], 1000)
    return sim


@scene
def two_that_each_grow_to_the_whole_pool() -> Simulation:
    sim = Simulation(num_pages=6, watermark=0.0)
    sim.add([1] * 4, 1000)
    sim.add([2] * 4, 1000)
    return sim


@scene
def shared_prefix_holds_the_pages_that_both_need_to_grow() -> Simulation:
    sim = Simulation(num_pages=7, watermark=0.0)
    sim.add(range(18), 8)
    sim.step()
    sim.add(range(18), 8)
    return sim


@scene
def siblings_wait_for_one_that_is_aborted_in_flight() -> Simulation:
    sim = Simulation(max_num_batched_tokens=8)
    owner = sim.add(range(40), 2)
    for _ in range(3):
        sim.add(range(40), 2)
    batch = sim.begin()
    sim.abort(owner)
    sim.finish(batch)
    return sim


@scene
def siblings_wait_for_one_that_is_preempted() -> Simulation:
    sim = Simulation(max_num_batched_tokens=8)
    owner = sim.add(range(40), 2)
    for _ in range(3):
        sim.add(range(40), 2)
    sim.step(2)
    sim.scheduler.preempt(owner.sequence_id)
    return sim


@scene
def siblings_wait_for_one_that_fails() -> Simulation:
    sim = Simulation(max_num_batched_tokens=8)
    owner = sim.add(range(40), 2)
    for _ in range(3):
        sim.add(range(40), 2)
    sim.finish(sim.begin(), failed=[owner.sequence_id])
    return sim


@scene
def each_waits_for_the_one_before() -> Simulation:
    sim = Simulation(num_pages=100, max_num_batched_tokens=4, max_num_seqs=4)
    for length in (8, 17, 26, 35, 44):
        sim.add(range(length), 2)
        sim.step()
    return sim


@scene
def sibling_waits_and_its_owner_is_pushed_out_by_growth() -> Simulation:
    sim = Simulation(num_pages=14, max_num_batched_tokens=4, watermark=0.0)
    sim.add([9] * 3, 20)
    sim.step()
    sim.add(range(48), 2)
    sim.add(range(48), 2)
    sim.step(3)
    return sim


@scene
def urgent_one_waits_for_pages_of_a_lower_class() -> Simulation:
    sim = Simulation(policy="priority", num_pages=60, max_num_batched_tokens=8)
    sim.add(range(40), 2, priority=9)
    sim.step()
    for n in range(4):
        sim.add([50 + n] * 24, 2, priority=5)
    sim.add(range(40), 2, priority=0)
    return sim


@scene
def urgent_one_meets_full_slots() -> Simulation:
    sim = Simulation(policy="priority", max_num_seqs=1)
    sim.add([1], 50, priority=1)
    sim.step()
    sim.add([2], 50, priority=0)
    return sim


@scene
def urgent_ones_push_each_other_out() -> Simulation:
    sim = Simulation(policy="priority", num_pages=8, watermark=0.0)
    for priority in range(6, 0, -1):
        sim.add([priority] * 12, 12, priority=priority)
        sim.step()
    return sim


@scene
def headroom_asked_for_exceeds_the_pool() -> Simulation:
    sim = Simulation(num_pages=12)
    for n in range(3):
        sim.add([n] * 4, 1000)
    sim.step()
    for _ in range(10):
        sim.scheduler.preempt(1)
        sim.scheduler.preempt(2)
        sim.step_until(lambda: all(s.state is not SequenceState.WAITING for s in sim.sequences))
        if not sim.scheduler.find(1) or not sim.scheduler.find(2):
            break
    return sim


@scene
def everybody_is_preempted_at_once() -> Simulation:
    sim = Simulation(num_pages=30)
    for n in range(6):
        sim.add([n] * 10, 10)
    sim.step(3)
    for n in range(6):
        sim.scheduler.preempt(n)
    return sim


@scene
def one_token_a_step() -> Simulation:
    sim = Simulation(max_num_batched_tokens=1)
    for n in range(3):
        sim.add([n] * 7, 3)
    return sim


@scene
def step_is_cancelled_again_and_again() -> Simulation:
    sim = Simulation(num_pages=8, watermark=0.0)
    for n in range(8):
        sim.add([n] * 4, 9)
    for _ in range(20):
        sim.cancel(sim.begin())
    return sim


@scene
def all_pages_are_in_an_aborted_step() -> Simulation:
    sim = Simulation(num_pages=8, watermark=0.0)
    for n in range(8):
        sim.add([n] * 4, 9)
    batch = sim.begin()
    sim.add([99] * 20, 9)
    sim.abort(*sim.sequences[:8])
    sim.finish(batch)
    return sim


def progress(scheduler: Scheduler, sim: Simulation) -> tuple[int, int, int]:
    """Grows with every token that is computed, sampled, or no longer needed."""
    alive = [s for s in sim.sequences if scheduler.find(s.sequence_id)]
    tokens = sum(s.num_tokens for s in sim.sequences)
    return len(sim.sequences) - len(alive), tokens, sum(s.num_computed for s in alive)


@pytest.mark.parametrize("build", SCENES, ids=[build.__name__ for build in SCENES])
def test_goes_on_within_two_steps_and_to_its_end(build: Scene) -> None:
    sim = build()
    before = progress(sim.scheduler, sim)
    for _ in range(5000):
        if not sim.scheduler.has_work:
            break
        num_tokens = sim.step().num_tokens
        if sim.scheduler.has_work:
            num_tokens += sim.step().num_tokens
        assert num_tokens > 0
        after = progress(sim.scheduler, sim)
        assert after > before, f"no progress after step {sim.num_steps}"
        before = after
    assert sim.scheduler.usage == 0.0
    sim.assert_outputs()

"""Giving up pages and coming back."""

from random import Random

import pytest

from nsa_scheduler import SequenceState
from tests.support.scheduling import Simulation


def test_last_arrived_gives_way_when_no_page_is_left() -> None:
    sim = Simulation(num_pages=6, watermark=0.0)
    first, second, third = (sim.add([n] * 8, 12) for n in range(3))
    sim.step()
    batch = sim.begin()
    assert batch.preempted == [third]
    assert third.state is SequenceState.WAITING
    assert third.pages == []
    sim.finish(batch)
    assert first.num_preemptions == second.num_preemptions == 0
    sim.drain()
    sim.assert_outputs()


def test_preempted_sequence_does_not_come_back_in_the_same_step() -> None:
    """Its twin holds all its pages, so that there would be room for it at once."""
    sim = Simulation(num_pages=8, watermark=0.0)
    first = sim.add(range(21), 7)
    twin = sim.add(range(21), 7)
    sim.step(5)
    batch = sim.begin()
    assert batch.preempted == [twin]
    assert [item.sequence for item in batch.items] == [first]
    sim.finish(batch)
    assert sim.step().num_tokens == 2
    sim.drain()
    sim.assert_outputs()


def test_first_arrived_is_never_preempted() -> None:
    sim = Simulation(num_pages=12)
    first = sim.add([0] * 4, 40)
    for n in range(1, 12):
        sim.add([n] * 4, 40)
    sim.drain()
    sim.assert_outputs()
    assert sim.scheduler.stats.num_preemptions > 0
    assert first.num_preemptions == 0


def test_preempted_sequence_comes_back_before_those_that_never_ran() -> None:
    sim = Simulation(num_pages=8, watermark=0.0)
    sequences = [sim.add([n] * 8, 12) for n in range(8)]
    sim.step_until(lambda: sequences[3].num_preemptions > 0)
    sim.drain()
    ends = [sim.ends[s] for s in sequences]
    assert len(ends) == 8
    admitted = [s.admitted_step for s in sequences]
    assert admitted == sorted(admitted)
    sim.assert_outputs()


@pytest.mark.parametrize(("num_preemptions", "admitted"), [(0, True), (7, True), (8, False)])
def test_often_preempted_sequence_waits_until_nothing_can_push_it_out(
    num_preemptions: int, admitted: bool
) -> None:
    sim = Simulation(num_pages=600, page_size=1, watermark=0.0)
    sim.add([1], 400)
    sim.step()
    late = sim.add([2], 300)
    late.num_preemptions = num_preemptions
    sim.step()
    assert (late.state is SequenceState.RUNNING) is admitted


def test_headroom_grows_with_every_preemption() -> None:
    sim = Simulation(num_pages=64, page_size=1, watermark=0.0)
    sim.add([1] * 30, 100)
    sim.step()
    admitted = []
    for num_preemptions in range(6):
        late = sim.add([2] * 10, 100)
        late.num_preemptions = num_preemptions
        sim.cancel(sim.begin())
        admitted.append(late.state is SequenceState.RUNNING)
        sim.abort(late)
    assert admitted == [True, True, True, True, True, False]


def test_preempted_sequence_leaves_the_watermark_too() -> None:
    sim = Simulation(num_pages=10, watermark=0.3)
    sim.add([1] * 15, 1)
    sim.cancel(sim.begin())
    late = sim.add([2] * 15, 1)
    late.num_preemptions = 1
    sim.step()
    assert late.admitted_step == -1


@pytest.mark.parametrize("policy", ["fcfs", "priority"])
@pytest.mark.parametrize(
    ("share", "prompts", "outputs", "max_num_seqs"),
    [
        (0.3, (1, 40), (8, 80), 32),
        (0.3, (1, 40), (8, 80), 256),
        (0.3, (1, 4), (60, 80), 256),
        (0.3, (20, 80), (4, 40), 256),
        (0.1, (1, 4), (10, 100), 256),
    ],
)
def test_256_sequences_on_a_part_of_the_pages_they_need(
    share: float, prompts: tuple[int, int], outputs: tuple[int, int], max_num_seqs: int, policy: str
) -> None:
    random = Random(0)
    lengths = [(random.randint(*prompts), random.randint(*outputs)) for _ in range(256)]
    need = sum(-(-(prompt + output) // 4) for prompt, output in lengths)
    sim = Simulation(num_pages=int(need * share), max_num_seqs=max_num_seqs, policy=policy)
    for n, (prompt, output) in enumerate(lengths):
        sim.add([n] * prompt, output, priority=n % 3)
    sim.drain()
    sim.assert_outputs()
    assert max(s.num_preemptions for s in sim.sequences) <= 8
    if max_num_seqs == 256:
        assert sim.scheduler.stats.num_preemptions > 0


@pytest.mark.parametrize(("caching", "budget"), [(True, 8), (True, 64), (False, 64)])
def test_preemption_forced_every_third_step_changes_no_token(caching: bool, budget: int) -> None:
    random = Random(budget)
    sim = Simulation(
        num_pages=80, max_num_batched_tokens=budget, max_num_seqs=8, enable_prefix_caching=caching
    )
    for n in range(24):
        sim.add([n % 5] * random.randint(1, 25), random.randint(4, 40))
    for num_step in range(3000):
        if not sim.scheduler.has_work:
            break
        sim.step()
        running = [s for s in sim.sequences if s.state is SequenceState.RUNNING]
        if running and num_step % 3 == 0:
            sim.scheduler.preempt(random.choice(running).sequence_id)
            sim.scheduler.check_integrity()
    sim.assert_outputs()
    assert sim.scheduler.stats.num_preemptions > 20


@pytest.mark.parametrize("offset", range(17))
def test_preempted_at_any_offset_resumes_with_the_same_tokens(offset: int) -> None:
    sim = Simulation()
    sequence = sim.add(range(5), 20)
    sim.step(offset + 1)
    sim.scheduler.preempt(sequence.sequence_id)
    sim.drain()
    sim.assert_outputs()


def test_priority_orders_the_queue_and_arrival_breaks_ties() -> None:
    sim = Simulation(policy="priority", max_num_seqs=1)
    sequences = [sim.add([n], 2, priority=p) for n, p in enumerate((2, 0, 1, 0))]
    sim.drain()
    order = sorted(range(4), key=lambda n: sequences[n].admitted_step)
    assert order == [1, 3, 2, 0]


def test_fcfs_ignores_priority() -> None:
    sim = Simulation(max_num_seqs=1)
    sequences = [sim.add([n], 2, priority=p) for n, p in enumerate((2, 0, 1))]
    sim.drain()
    assert sequences[0].admitted_step < sequences[1].admitted_step < sequences[2].admitted_step


def test_higher_priority_takes_the_slot_of_a_lower_one() -> None:
    sim = Simulation(policy="priority", max_num_seqs=2)
    low = [sim.add([n] * 4, 20, priority=n) for n in (1, 2)]
    sim.step(3)
    high = sim.add([9] * 4, 4, priority=0)
    assert sim.step().preempted == [low[1]]
    assert high.num_output_tokens == 1
    sim.drain()
    sim.assert_outputs()


def test_higher_priority_takes_the_pages_of_as_few_as_needed() -> None:
    sim = Simulation(policy="priority", num_pages=16, watermark=0.0)
    low = [sim.add([n] * 16, 4, priority=5) for n in range(4)]
    sim.cancel(sim.begin())
    high = sim.add([9] * 20, 2, priority=0)
    assert sim.step().preempted == [low[3], low[2]]
    assert high.num_output_tokens == 1
    sim.drain()
    sim.assert_outputs()


def test_equal_priority_preempts_nobody_to_get_in() -> None:
    sim = Simulation(policy="priority", max_num_seqs=1)
    sim.add([1], 9, priority=3)
    sim.step()
    late = sim.add([2], 9, priority=3)
    sim.step(4)
    assert late.admitted_step == -1
    assert sim.scheduler.stats.num_preemptions == 0


def test_nobody_is_preempted_for_one_that_would_not_fit_even_then() -> None:
    sim = Simulation(policy="priority", num_pages=12, watermark=0.0)
    sim.add([1] * 20, 12, priority=0)
    low = sim.add([2] * 4, 12, priority=9)
    sim.step()
    sim.add([3] * 32, 4, priority=5)
    sim.step()
    assert low.num_preemptions == 0
    sim.drain()
    sim.assert_outputs()


def test_shared_pages_of_victims_count_only_when_all_holders_give_way() -> None:
    sim = Simulation(policy="priority", num_pages=12, watermark=0.0)
    for _ in range(2):
        sim.add(range(33), 12, priority=9)
    sim.step(3)
    assert sim.scheduler.num_running == 2
    high = sim.add([7] * 24, 4, priority=0)
    sim.step()
    assert high.num_output_tokens == 1
    sim.drain()
    sim.assert_outputs()


def test_pages_that_a_sequence_shares_with_its_victim_are_no_room_for_it() -> None:
    sim = Simulation(policy="priority", num_pages=12, watermark=0.0)
    sim.add([77] * 11, 2, priority=0)
    low = sim.add(range(33), 2, priority=9)
    sim.step()
    sim.add([*range(32), *[9] * 12], 2, priority=1)
    sim.begin()
    assert low.num_preemptions == 0

"""What one step computes."""

from itertools import count

import pytest

from nsa_scheduler import EndReason
from tests.support.scheduling import Simulation


def num_tokens_by_sequence(sim: Simulation) -> dict[int, int]:
    return {item.sequence.sequence_id: item.num_tokens for item in sim.step().items}


@pytest.mark.parametrize("budget", [1, 2, 3, 5, 7, 16, 64])
def test_chunks_of_any_length_give_the_same_output(budget: int) -> None:
    sim = Simulation(max_num_batched_tokens=budget)
    for length in (1, 4, 5, 13, 29):
        sim.add(range(length), 9)
    sim.drain()
    sim.assert_outputs()


def test_decoding_sequences_come_first_and_always_get_their_token() -> None:
    sim = Simulation(num_pages=400, max_num_batched_tokens=8)
    decoding = [sim.add([n], 50) for n in range(3)]
    sim.step()
    sim.add(range(100), 1)
    for _ in range(20):
        items = sim.step().items
        assert [item.sequence for item in items[:3]] == decoding
        assert [item.num_tokens for item in items] == [1, 1, 1, 5]


def test_several_prompts_share_a_step_shortest_first() -> None:
    sim = Simulation(max_num_batched_tokens=16)
    long, middle, short = (sim.add([n] * n).sequence_id for n in (40, 9, 3))
    batch = sim.begin()
    assert [(i.sequence.sequence_id, i.num_tokens) for i in batch.items] == [
        (short, 3),
        (middle, 9),
        (long, 4),
    ]


def test_short_prompt_overtakes_a_long_one_that_arrived_before() -> None:
    sim = Simulation(max_num_batched_tokens=8, num_pages=64)
    long = sim.add(range(100))
    sim.step(2)
    short = sim.add([7] * 8)
    sim.step()
    assert short.num_output_tokens == 1
    assert long.num_computed == 16


@pytest.mark.parametrize(("budget", "max_num_seqs"), [(8, 4), (16, 3), (6, 6)])
def test_long_prompt_catches_up_within_the_stated_bound(budget: int, max_num_seqs: int) -> None:
    sim = Simulation(
        num_pages=1000, page_size=8, max_num_batched_tokens=budget, max_num_seqs=max_num_seqs
    )
    length, longest_other = 160, budget
    long = sim.add([-1] * length, 1)
    sim.step()
    fresh = count()
    window = -(-length // budget)
    bound = window + -(-max_num_seqs * length // (budget - max_num_seqs + 1))
    while sim.scheduler.find(long.sequence_id):
        while sim.scheduler.num_waiting < max_num_seqs:
            sim.add([next(fresh)] * longest_other, 1)
        sim.step()
        assert sim.num_steps <= bound
    assert sim.num_steps > window, "nothing competed: the scene is too easy"


def test_long_prompt_would_starve_without_ageing() -> None:
    """The flood of the test above is one that shortest-first alone does not survive."""
    sim = Simulation(num_pages=1000, page_size=8, max_num_batched_tokens=8, max_num_seqs=4)
    long = sim.add([-1] * 160, 1)
    sim.step()
    long.admitted_step = 10**9
    for n in range(500):
        sim.add([n] * 8, 1)
        sim.step()
    assert long.num_computed == 8


def test_prompt_of_a_higher_class_goes_before_a_shorter_one() -> None:
    sim = Simulation(policy="priority", max_num_batched_tokens=8)
    sim.add([1] * 6, priority=1)
    urgent = sim.add([2] * 40, priority=0)
    assert num_tokens_by_sequence(sim) == {urgent.sequence_id: 8}


def test_prompt_that_a_higher_class_waits_for_is_of_that_class() -> None:
    sim = Simulation(policy="priority", max_num_batched_tokens=8)
    owner = sim.add([1] * 40, priority=9)
    sim.step()
    sim.add([1] * 41, priority=0)
    sim.add([2] * 6, priority=5)
    assert num_tokens_by_sequence(sim) == {owner.sequence_id: 8}


def test_running_sequences_never_outnumber_the_tokens_of_a_step() -> None:
    sim = Simulation(max_num_batched_tokens=3, max_num_seqs=64)
    for n in range(9):
        sim.add([n], 20)
    sim.step()
    assert sim.scheduler.num_running == 3
    assert num_tokens_by_sequence(sim) == {0: 1, 1: 1, 2: 1}
    sim.drain()
    sim.assert_outputs()


def test_nothing_to_do_is_an_empty_batch() -> None:
    sim = Simulation()
    assert not sim.step()
    assert not sim.scheduler.has_work


def test_update_reports_a_token_only_for_those_that_caught_up() -> None:
    sim = Simulation(max_num_batched_tokens=4)
    sequence = sim.add(range(6), 2)
    first, second, third = (sim.finish(sim.begin()) for _ in range(3))
    assert [u.new_token_ids for u in first] == [[]]
    assert [u.new_token_ids for u in second] == [[sequence.token_ids[6]]]
    assert [(u.new_token_ids, u.end) for u in third] == [
        ([sequence.token_ids[7]], EndReason.LENGTH)
    ]


def test_cancelled_step_leaves_no_trace_and_can_run_again() -> None:
    sim = Simulation(max_num_batched_tokens=6)
    sequences = [sim.add([n] * 10, 12) for n in range(4)]
    for num_step in range(200):
        if not sim.scheduler.has_work:
            break
        before = [(s.num_computed, list(s.token_ids), s.state) for s in sequences]
        batch = sim.begin()
        running = {item.sequence for item in batch.items}
        sim.cancel(batch)
        after = [(s.num_computed, list(s.token_ids), s.state) for s in sequences]
        assert [a[:2] for a in after] == [b[:2] for b in before]
        assert running <= {item.sequence for item in sim.step().items}, num_step
    sim.assert_outputs()


def test_cancelled_step_registers_no_page() -> None:
    sim = Simulation(max_num_batched_tokens=64)
    sim.add(range(20))
    batch = sim.begin()
    sim.cancel(batch)
    sim.scheduler.preempt(0)
    again = sim.step().items[0]
    assert (again.start, again.num_tokens) == (0, 20)


def test_admission_is_in_order_of_arrival() -> None:
    sim = Simulation(max_num_seqs=2)
    sequences = [sim.add([n] * 5, 3) for n in range(6)]
    sim.drain()
    admitted = [s.admitted_step for s in sequences]
    assert admitted == sorted(admitted)


def test_a_page_is_there_a_token_early_while_any_is_free() -> None:
    sim = Simulation(num_pages=4, page_size=4, watermark=0.0, num_lookahead_tokens=1)
    early, late = sim.add(range(3)), sim.add(range(100, 104))
    held = []
    for _ in range(4):
        sim.finish(sim.begin())
        held.append((len(early.pages), len(late.pages)))
    # Lengths at the time of planning: 3 and 4, 4 and 5, 5 and 6, 6 and 7.
    assert held == [(1, 1), (2, 2), (2, 2), (2, 2)]
    assert late.num_preemptions == 0
    short = Simulation(num_pages=3, page_size=4, watermark=0.0, num_lookahead_tokens=1)
    first, second = short.add(range(4)), short.add(range(100, 104))
    short.finish(short.begin())
    short.finish(short.begin())
    assert (len(first.pages), second.num_preemptions) == (2, 1)

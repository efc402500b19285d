"""Why sequences end."""

import pytest

from nsa_scheduler import EndReason, SequenceState
from tests.support.scheduling import Simulation, uninterrupted


def test_ends_at_its_number_of_output_tokens() -> None:
    sim = Simulation()
    sequence = sim.add([1, 2, 3], 5)
    sim.drain()
    assert sequence.num_output_tokens == 5
    assert sim.ends[sequence] is EndReason.LENGTH
    assert sequence.state is SequenceState.FINISHED
    assert sequence.pages == []


def test_ends_at_the_context_of_the_model() -> None:
    sim = Simulation(max_model_len=10)
    sequence = sim.add([1, 2, 3], 100)
    sim.drain()
    assert sequence.num_tokens == 10
    assert sim.ends[sequence] is EndReason.LENGTH


def test_one_that_outgrows_the_whole_pool_ends_by_length() -> None:
    sim = Simulation(num_pages=3, page_size=4)
    sequence = sim.add([1, 2, 3], 100)
    sim.drain()
    assert sequence.num_tokens == 12
    assert sim.ends[sequence] is EndReason.LENGTH


def test_stop_token_ends_and_stays() -> None:
    sim = Simulation()
    probe = sim.add([1, 2, 3], 8)
    sim.drain()
    stop = probe.token_ids[3 + 4]
    sequence = sim.add([1, 2, 3], 8, stop_token_ids=frozenset([stop]))
    updates = []
    while sim.scheduler.has_work:
        updates += sim.finish(sim.begin())
    assert sequence.token_ids[-1] == stop
    assert sequence.num_output_tokens == 5
    assert (updates[-1].end, updates[-1].stop_token_id) == (EndReason.STOP, stop)
    assert all(u.stop_token_id is None for u in updates[:-1])


def test_stop_token_is_ignored_before_the_minimum() -> None:
    sim = Simulation()
    everything = frozenset(range(1000))
    lengths = []
    for minimum in (0, 1, 2, 5):
        sequence = sim.add([1, 2, 3], 8, stop_token_ids=everything, min_output_tokens=minimum)
        sim.drain()
        lengths.append(sequence.num_output_tokens)
    assert lengths == [1, 1, 2, 5]


def test_stop_goes_before_length_on_the_last_token() -> None:
    sim = Simulation()
    sequence = sim.add([1, 2, 3], 1, stop_token_ids=frozenset(range(1000)))
    sim.drain()
    assert sim.ends[sequence] is EndReason.STOP


def test_failed_sequence_ends_with_error_and_the_others_go_on() -> None:
    sim = Simulation()
    sequences = [sim.add([n] * 6, 6) for n in range(4)]
    sim.step(2)
    updates = sim.finish(sim.begin(), failed=[2])
    assert [u.end for u in updates] == [None, None, EndReason.ERROR, None]
    assert updates[2].new_token_ids == []
    sim.drain()
    sim.assert_outputs()
    assert sequences[2].num_output_tokens == 2


def test_no_page_of_a_failed_sequence_is_hit_again() -> None:
    sim = Simulation()
    sim.add(range(20), 6)
    sim.step(3)
    sim.finish(sim.begin(), failed=[0])
    again = sim.add(range(20), 6)
    sim.drain()
    assert again.num_cached_tokens == 0
    sim.assert_outputs()


@pytest.mark.parametrize("minimum", [0, 3])
def test_reference_of_these_tests_honours_stop_tokens(minimum: int) -> None:
    sim = Simulation()
    sequence = sim.add([5], 8, stop_token_ids=frozenset(range(1000)), min_output_tokens=minimum)
    sim.drain()
    assert len(uninterrupted(sequence, 10_000)) == max(1, minimum)

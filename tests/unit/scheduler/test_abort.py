"""Sequences can be taken away in every state, and no page stays behind."""

from collections import Counter
from random import Random

import pytest

from nsa_scheduler import Sequence, SequenceState
from tests.support.scheduling import Simulation


def test_unknown_and_repeated_ids_are_no_error() -> None:
    sim = Simulation()
    sequence = sim.add([1])
    assert sim.scheduler.abort([99, sequence.sequence_id, sequence.sequence_id]) == [sequence]
    assert sim.scheduler.abort([sequence.sequence_id, 99]) == []
    assert not sim.scheduler.has_work


def test_finished_sequence_is_not_ended_again() -> None:
    sim = Simulation()
    sequence = sim.add([1], 1)
    sim.drain()
    assert sim.abort(sequence) == []


def test_pages_are_free_at_once_between_steps() -> None:
    sim = Simulation()
    sequence = sim.add(range(20))
    sim.step(2)
    sim.abort(sequence)
    assert sim.scheduler.usage == 0.0
    assert sequence.state is SequenceState.FINISHED


@pytest.mark.parametrize("end", ["update", "cancel"])
def test_pages_of_a_step_in_flight_are_free_after_it_and_its_token_is_dropped(end: str) -> None:
    sim = Simulation()
    sequence, other = sim.add(range(20)), sim.add([1] * 20)
    batch = sim.begin()
    sim.abort(sequence)
    assert sim.scheduler.usage == 10 / 64
    if end == "update":
        updates = sim.finish(batch)
        assert [u.sequence for u in updates] == [other]
    else:
        sim.cancel(batch)
    assert sequence.num_output_tokens == 0
    assert sim.scheduler.usage == 5 / 64


def test_step_of_aborted_sequences_only_gives_no_update() -> None:
    sim = Simulation()
    sequence = sim.add([1, 2])
    batch = sim.begin()
    sim.abort(sequence)
    assert sim.finish(batch) == []
    assert not sim.scheduler.has_work


def test_sequence_that_is_aborted_in_flight_and_fails_leaves_no_page_to_hit() -> None:
    sim = Simulation(max_num_batched_tokens=16)
    sequence = sim.add(range(40))
    sim.step()
    batch = sim.begin()
    sim.abort(sequence)
    assert sim.finish(batch, failed=[sequence.sequence_id]) == []
    again = sim.add(range(40))
    sim.step()
    assert again.num_cached_tokens == 0


def state_of(sequence: Sequence, in_flight: set[Sequence]) -> str:
    """A name for where in its life the sequence is."""
    if sequence.state is SequenceState.FINISHED:
        return "finished"
    if sequence.state is SequenceState.WAITING:
        return "preempted" if sequence.num_preemptions else "queued"
    part = "chunk" if sequence.num_computed < sequence.num_prompt_tokens else "decoding"
    if sequence.num_output_tokens == sequence.max_output_tokens - 1 and part == "decoding":
        part = "last step"
    return f"{part} in flight" if sequence in in_flight else part


def test_10_000_aborts_in_every_state_leak_no_page() -> None:
    random = Random(0)
    sim = Simulation(num_pages=40, max_num_batched_tokens=12, max_num_seqs=8, max_num_queued=40)
    aborted_in: Counter[str] = Counter()
    while sum(aborted_in.values()) < 10_000:
        while sim.scheduler.num_waiting < 12:
            sim.add([random.randrange(4)] * random.randint(1, 40), random.randint(1, 10))
        sim.sequences = sim.sequences[-60:]
        if sim.num_steps % 5 == 0:
            abort_some(sim, random, set(), aborted_in)
        batch = sim.begin()
        if sim.num_steps % 2:
            abort_some(sim, random, {item.sequence for item in batch.items}, aborted_in)
        sim.finish(batch)
    sim.scheduler.abort(range(10**6))
    assert sim.scheduler.usage == 0.0
    assert not sim.scheduler.has_work
    sim.scheduler.check_integrity()
    assert set(aborted_in) == {
        "finished",
        "queued",
        "preempted",
        "chunk",
        "chunk in flight",
        "decoding",
        "decoding in flight",
        "last step",
        "last step in flight",
    }


def abort_some(
    sim: Simulation, random: Random, in_flight: set[Sequence], aborted_in: Counter[str]
) -> None:
    chosen = random.sample(sim.sequences, min(len(sim.sequences), 6))
    aborted_in.update(state_of(sequence, in_flight) for sequence in chosen)
    alive = [s for s in chosen if s.state is not SequenceState.FINISHED]
    assert sim.abort(*chosen, *chosen[:1]) == alive

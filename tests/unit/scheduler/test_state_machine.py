"""Random histories: the pool adds up after every rule, and no output ever differs."""

from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from nsa_scheduler import NeverFits, QueueFull, ScheduledBatch, Sequence, SequenceState
from tests.support.scheduling import Simulation

PROMPTS = st.builds(
    lambda family, shared, own: [family] * shared + own,
    st.integers(0, 2),
    st.integers(1, 30),
    st.lists(st.integers(10, 12), max_size=6),
)
"""Prompts of three families, so that prefixes are often shared."""

STOP_TOKENS = st.sampled_from([frozenset[int](), frozenset(range(0, 1000, 7))])


class SchedulerMachine(RuleBasedStateMachine):
    """Everything that can happen to a scheduler, in any order."""

    sim: Simulation
    batch: ScheduledBatch | None = None

    @initialize(
        num_pages=st.integers(4, 40),
        page_size=st.sampled_from([1, 4, 5]),
        max_num_seqs=st.integers(1, 6),
        budget=st.sampled_from([1, 3, 8, 64]),
        policy=st.sampled_from(["fcfs", "priority"]),
        caching=st.sampled_from([True, True, True, False]),
        watermark=st.sampled_from([0.0, 0.01, 0.3]),
        lookahead=st.integers(0, 1),
    )
    def start(
        self,
        num_pages: int,
        page_size: int,
        max_num_seqs: int,
        budget: int,
        policy: str,
        caching: bool,
        watermark: float,
        lookahead: int,
    ) -> None:
        self.sim = Simulation(
            num_pages=num_pages,
            page_size=page_size,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=budget,
            policy=policy,
            enable_prefix_caching=caching,
            watermark=watermark,
            num_lookahead_tokens=lookahead,
            max_num_queued=12,
            max_model_len=48,
        )

    @rule(
        prompt=PROMPTS,
        n=st.sampled_from([1, 1, 3]),
        max_output_tokens=st.integers(1, 20),
        priority=st.integers(0, 2),
        salt=st.sampled_from([b"", b"", b"salt"]),
        may_read_prefix_cache=st.sampled_from([True, True, False]),
        stop_token_ids=STOP_TOKENS,
        min_output_tokens=st.integers(0, 3),
    )
    def add(self, prompt: list[int], n: int, **fields: Any) -> None:
        for _ in range(n):
            try:
                self.sim.add(prompt, **fields)
            except NeverFits:
                assert len(prompt) + 1 > self.sim.config.max_sequence_len
            except QueueFull:
                assert self.sim.scheduler.num_waiting >= 12

    @precondition(lambda self: self.batch is None)
    @rule(num_steps=st.integers(1, 6))
    def step(self, num_steps: int) -> None:
        for _ in range(num_steps):
            had_work = self.sim.scheduler.has_work
            assert bool(self.sim.step()) == had_work

    @precondition(lambda self: self.batch is None)
    @rule()
    def begin(self) -> None:
        self.batch = self.sim.begin() or None

    @precondition(lambda self: self.batch is not None)
    @rule(data=st.data(), fails=st.booleans())
    def finish(self, data: st.DataObject, fails: bool) -> None:
        assert self.batch
        failed = [data.draw(st.sampled_from(self.batch.items)).sequence.sequence_id] * fails
        self.sim.finish(self.batch, failed)
        self.batch = None

    @precondition(lambda self: self.batch is not None)
    @rule()
    def cancel(self) -> None:
        assert self.batch
        self.sim.cancel(self.batch)
        self.batch = None

    @precondition(lambda self: self.sim.sequences)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        chosen = data.draw(st.lists(st.sampled_from(self.sim.sequences), max_size=3))
        alive = {s for s in chosen if s.state is not SequenceState.FINISHED}
        aborted = self.sim.abort(*chosen)
        assert set(aborted) == alive
        assert len(aborted) == len(alive)

    @precondition(lambda self: self.batch is None and self.running())
    @rule(data=st.data())
    def preempt(self, data: st.DataObject) -> None:
        chosen = data.draw(st.sampled_from(self.running()))
        self.sim.scheduler.preempt(chosen.sequence_id)

    @precondition(lambda self: self.batch is None)
    @rule()
    def drain(self) -> None:
        self.sim.drain()

    @invariant()
    def adds_up(self) -> None:
        self.sim.scheduler.check_integrity()

    def running(self) -> list[Sequence]:
        """Sequences that hold pages."""
        return [s for s in self.sim.sequences if s.state is SequenceState.RUNNING]

    def teardown(self) -> None:
        if not hasattr(self, "sim"):
            return
        if self.batch is not None:
            self.sim.finish(self.batch)
        self.sim.drain()
        self.sim.assert_outputs()


def run_machine(num_runs: int) -> None:
    """`num_runs` histories of up to 50 rules."""
    run_state_machine_as_test(
        SchedulerMachine,
        settings=settings(
            max_examples=num_runs,
            stateful_step_count=50,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_random_histories_add_up_and_change_no_token() -> None:
    run_machine(40)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_2000_random_histories_add_up_and_change_no_token() -> None:
    run_machine(2000)

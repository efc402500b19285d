"""Who is taken in, who waits, and who is refused."""

import pytest

from nsa_scheduler import NeverFits, QueueFull
from tests.support.scheduling import Simulation


@pytest.mark.parametrize(
    ("num_pages", "max_model_len", "longest"), [(4, 1000, 15), (1000, 12, 11), (1, 4, 3)]
)
def test_prompt_that_can_never_fit_with_one_more_token_is_refused(
    num_pages: int, max_model_len: int, longest: int
) -> None:
    sim = Simulation(num_pages=num_pages, max_model_len=max_model_len)
    with pytest.raises(NeverFits, match=str(longest + 1)):
        sim.add(range(longest + 1), 1)
    assert not sim.scheduler.has_work
    sim.add(range(longest), 1000)
    sim.drain()
    sim.assert_outputs()


def test_queue_takes_as_many_as_may_wait_and_then_again_after_admission() -> None:
    sim = Simulation(max_num_queued=3, max_num_seqs=2)
    for n in range(3):
        sim.add([n])
    with pytest.raises(QueueFull):
        sim.add([9])
    sim.step()
    sim.add([3])
    sim.add([4])
    with pytest.raises(QueueFull):
        sim.add([9])
    sim.drain()
    sim.assert_outputs()


def test_refused_sequence_is_not_known() -> None:
    sim = Simulation(max_num_queued=1)
    kept = sim.add([1])
    with pytest.raises(QueueFull):
        sim.add([2])
    assert sim.scheduler.find(kept.sequence_id) is kept
    assert sim.scheduler.find(kept.sequence_id + 1) is None


def test_no_more_sequences_run_than_allowed() -> None:
    sim = Simulation(max_num_seqs=3)
    for n in range(10):
        sim.add([n])
    while sim.scheduler.has_work:
        sim.step()
        assert sim.scheduler.num_running <= 3
    sim.assert_outputs()


def test_large_head_is_not_overtaken_by_small_ones_that_would_fit() -> None:
    sim = Simulation(num_pages=20, watermark=0.0)
    sim.add([1] * 40, 4)
    sim.step()
    large = sim.add([2] * 44, 4)
    small = [sim.add([n], 1) for n in range(3, 9)]
    sim.step_until(lambda: large.admitted_step >= 0, limit=10)
    assert all(s.admitted_step in (-1, large.admitted_step) for s in small)
    sim.drain()
    sim.assert_outputs()


def test_stream_of_small_ones_does_not_starve_a_large_head() -> None:
    sim = Simulation(num_pages=20, page_size=4, watermark=0.0)
    for n in range(4):
        sim.add([n] * 12, 8)
    sim.step()
    large = sim.add([77] * 60, 2)
    for n in range(100):
        sim.add([100 + n] * 4, 2)
        sim.step()
        if large.num_output_tokens:
            break
    assert sim.num_steps == 8 + 1


def test_watermark_stays_free_while_others_run() -> None:
    sim = Simulation(num_pages=20, watermark=0.2)
    sim.add([1] * 32, 4)
    exact = sim.add([2] * 32, 4)
    sim.step()
    assert exact.admitted_step == 1
    over = sim.add([3] * 4, 4)
    sim.step()
    assert over.admitted_step == -1
    sim.drain()
    sim.assert_outputs()


def test_watermark_is_ignored_where_nothing_runs() -> None:
    sim = Simulation(num_pages=10, watermark=0.9)
    sequence = sim.add([1] * 39, 1)
    sim.step()
    assert sequence.num_output_tokens == 1


def test_pages_for_all_present_tokens_are_held_from_admission_on() -> None:
    sim = Simulation(max_num_batched_tokens=8)
    sequence = sim.add(range(30))
    sim.step()
    assert sequence.num_computed == 8
    assert len(sequence.pages) == 8


def test_decoding_takes_a_page_only_at_a_border() -> None:
    sim = Simulation(page_size=4)
    sequence = sim.add(range(3), 10)
    held = []
    for _ in range(9):
        sim.step()
        held.append(len(sequence.pages))
    assert held == [1, 1, 2, 2, 2, 2, 3, 3, 3]


def test_usage_is_the_part_of_pages_that_sequences_hold() -> None:
    sim = Simulation(num_pages=40)
    sim.add(range(36))
    assert sim.scheduler.usage == 0.0
    sim.step()
    assert sim.scheduler.usage == 9 / 40
    assert (sim.scheduler.num_running, sim.scheduler.num_waiting) == (1, 0)

"""What the prefix cache gives, to whom, and for how long."""

from nsa_scheduler import EndReason
from tests.support.scheduling import Simulation

PROMPT = range(22)


def cached_tokens_of_second(sim: Simulation, prompt: range = PROMPT, **fields: object) -> int:
    sequence = sim.add(prompt, 4, **fields)
    sim.drain()
    sim.assert_outputs()
    return sequence.num_cached_tokens


def warmed(**limits: object) -> Simulation:
    sim = Simulation(**limits)  # type: ignore[arg-type]
    sim.add(PROMPT, 4)
    sim.drain()
    return sim


def test_full_pages_of_an_earlier_prompt_are_hit() -> None:
    assert cached_tokens_of_second(warmed()) == 20


def test_hit_ends_at_the_first_page_that_differs() -> None:
    assert cached_tokens_of_second(warmed(), range(11)) == 8
    sim = warmed()
    other = sim.add([*range(10), 99, *range(11, 22)], 4)
    sim.drain()
    assert other.num_cached_tokens == 8


def test_last_token_is_always_computed() -> None:
    sim = warmed()
    assert [cached_tokens_of_second(sim, range(n)) for n in (20, 21, 4, 5)] == [16, 20, 0, 4]


def test_output_tokens_are_hit_as_part_of_a_longer_prompt() -> None:
    sim = Simulation()
    first = sim.add(range(10), 15)
    sim.drain()
    second = sim.add([*first.token_ids, 7], 4)
    sim.drain()
    assert second.num_cached_tokens == 24


def test_other_salt_hits_nothing() -> None:
    sim = warmed()
    assert cached_tokens_of_second(sim, salt=b"other") == 0
    assert cached_tokens_of_second(sim, salt=b"other") == 20


def test_sequence_that_may_not_read_computes_all_and_still_registers() -> None:
    sim = Simulation()
    assert cached_tokens_of_second(sim, may_read_prefix_cache=False) == 0
    assert cached_tokens_of_second(sim, may_read_prefix_cache=False) == 0
    assert cached_tokens_of_second(sim) == 20


def test_disabled_cache_hits_nothing_and_keeps_nothing() -> None:
    sim = warmed(enable_prefix_caching=False)
    assert cached_tokens_of_second(sim) == 0
    assert sim.scheduler.stats.prefix_cache_queries == 0


def test_running_sequences_share_pages_without_a_copy() -> None:
    sim = warmed()
    first, second = sim.add(PROMPT, 40), sim.add(PROMPT, 40)
    sim.step(3)
    assert first.pages[:5] == second.pages[:5]
    assert not set(first.pages[5:]) & set(second.pages[5:])
    sim.drain()
    sim.assert_outputs()


def test_statistics_count_prompt_tokens_looked_up_and_found() -> None:
    sim = warmed()
    cached_tokens_of_second(sim)
    stats = sim.scheduler.stats
    assert (stats.prefix_cache_queries, stats.prefix_cache_hits) == (44, 20)


def test_prompt_used_longest_ago_is_evicted_first() -> None:
    sim = Simulation(num_pages=12)
    for start in (100, 200):
        sim.add(range(start, start + 16), 1)
        sim.drain()
    sim.add(range(300, 330), 1)
    sim.drain()
    used = []
    for start in (200, 100):
        used.append(sim.add([*range(start, start + 16), 1], 1))
        sim.drain()
    assert [sequence.num_cached_tokens for sequence in used] == [16, 0]


def test_prefix_outlives_its_continuation() -> None:
    sim = Simulation(num_pages=8)
    sim.add(range(24), 1)
    sim.drain()
    sim.add(range(500, 516), 1)
    sim.drain()
    again = sim.add(range(25), 1)
    sim.begin()
    assert again.num_cached_tokens == 16


def test_hit_pages_are_not_counted_as_room_for_the_rest() -> None:
    """5 of 6 pages are hit and cached: the pool has no room for a prompt of 7 pages."""
    sim = Simulation(num_pages=9, watermark=0.0)
    sim.add(range(22), 1)
    sim.drain()
    holder = sim.add([99] * 9, 3)
    sim.step()
    wide = sim.add(range(28), 1)
    sim.step()
    assert wide.admitted_step == -1
    sim.drain()
    assert sim.ends[holder] is EndReason.LENGTH
    sim.assert_outputs()


def test_same_page_computed_twice_is_registered_once_and_leaks_nothing() -> None:
    sim = Simulation()
    for _ in range(3):
        sim.add(PROMPT, 6, may_read_prefix_cache=False)
    sim.drain()
    sim.assert_outputs()
    assert cached_tokens_of_second(sim) == 20


def test_resuming_after_preemption_hits_its_own_pages() -> None:
    sim = Simulation()
    sequence = sim.add(range(18), 12)
    sim.step(6)
    computed = sequence.num_computed
    sim.scheduler.preempt(sequence.sequence_id)
    batch = sim.begin()
    assert batch.items[0].start == computed // 4 * 4
    sim.finish(batch)
    sim.drain()
    sim.assert_outputs()
    assert sequence.num_cached_tokens == 0

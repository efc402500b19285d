"""When refused clients are told to come back, on a clock that is turned by hand."""

import heapq
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsa_serve.engine.retry_times import LONGEST_WAIT, SHORTEST_WAIT, RetryTimes
from tests.support.hand_clock import HandClock

PLACES = 80


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


def seen(clock: HandClock, per_second: float, seconds: int = 200) -> RetryTimes:
    """Times of an engine that was full, and finished so many a second, for long."""
    times = RetryTimes(PLACES, clock)
    for _ in range(round(seconds * per_second)):
        clock.turn(1 / per_second)
        times.observe(full=True, num_finished=1)
    return times


def test_the_rate_is_that_at_which_a_full_engine_finishes(clock: HandClock) -> None:
    assert seen(clock, 10.0).rate == pytest.approx(10.0, rel=0.05)
    assert seen(clock, 0.5).rate == pytest.approx(0.5, rel=0.05)


def test_the_first_guess_gives_way_within_seconds(clock: HandClock) -> None:
    assert RetryTimes(PLACES, clock).rate == PLACES / 2
    assert seen(clock, 5.0, seconds=10).rate == pytest.approx(5.0, rel=0.5)


def test_an_engine_that_finishes_nothing_grows_slow_but_never_stands_still(
    clock: HandClock,
) -> None:
    times = seen(clock, 10.0)
    clock.turn(20)
    times.observe(full=True)
    assert times.rate < 5
    clock.turn(1e6)
    times.observe(full=True)
    assert times.next(64, 1) == LONGEST_WAIT


def test_idle_hours_change_no_rate(clock: HandClock) -> None:
    """Little was asked for then, which says nothing of what the engine can do."""
    times = seen(clock, 10.0)
    before = times.rate
    for _ in range(10):
        clock.turn(1000)
        times.observe(full=False, num_finished=1)
    assert times.rate == before


def test_a_burst_is_spread_at_the_pace_at_which_places_come_free(clock: HandClock) -> None:
    times = seen(clock, 10.0)
    waits = [times.next(30, 1) for _ in range(100)]
    assert waits[0] == pytest.approx(3.0, rel=0.05)
    gaps = [later - earlier for earlier, later in itertools.pairwise(waits)]
    assert gaps == pytest.approx([1 / (0.9 * times.rate)] * 99)
    assert 10 < waits[-1] < 15


def test_who_wants_many_places_moves_the_next_back_by_as_many(clock: HandClock) -> None:
    one, many = seen(clock, 10.0), seen(clock, 10.0)
    first = [times.next(30, 1) for times in (one, many)]
    assert many.next(30, 20) - first[1] == pytest.approx(20 * (one.next(30, 1) - first[0]))


def test_moments_that_have_passed_are_out_of_the_queue(clock: HandClock) -> None:
    times = seen(clock, 10.0)
    waits = [times.next(30, 1) for _ in range(100)]
    clock.turn(5)
    assert times.next(30, 1) == pytest.approx(waits[-1] - 5, abs=0.2)
    clock.turn(LONGEST_WAIT)
    assert times.next(30, 1) == waits[0]
    clock.turn(LONGEST_WAIT)
    assert times.next(0, 1) == SHORTEST_WAIT


def test_a_gap_is_left_behind_those_who_were_told_to_come_too_early(clock: HandClock) -> None:
    """They find a full queue, and leave one."""
    times = RetryTimes(PLACES, clock)
    waits = [times.next(30, 1) for _ in range(400)]
    clock.turn(3)
    times.observe(full=True, num_finished=6)
    assert times.rate < 0.5 * PLACES / 2
    later = [times.next(30, 1) + 3 for _ in range(2)]
    assert later[0] - waits[-1] == pytest.approx(30 / times.rate + 1 / (0.9 * times.rate))
    assert later[1] - later[0] == pytest.approx(1 / (0.9 * times.rate))


MOVES = st.one_of(
    st.tuples(st.just("turn"), st.floats(0, 100)),
    st.tuples(st.just("full"), st.integers(0, 300)),
    st.tuples(st.just("idle"), st.integers(0, 300)),
    st.tuples(st.just("refuse"), st.integers(1, 500)),
)


@given(st.lists(MOVES, max_size=60), st.integers(1, 5000))
def test_every_wait_is_bounded_and_nobody_passes_those_before(
    moves: list[tuple[str, float]], num_places: int
) -> None:
    clock = HandClock()
    times = RetryTimes(num_places, clock)
    last = 0.0
    for move, number in moves:
        if move == "turn":
            clock.turn(number)
        elif move == "refuse":
            wait = times.next(int(number) % 100, int(number))
            assert SHORTEST_WAIT <= wait <= LONGEST_WAIT
            assert clock.now + wait >= last - 1e-6
            last = clock.now + wait
        else:
            times.observe(full=move == "full", num_finished=int(number))
    clock.turn(LONGEST_WAIT)
    expected = max(SHORTEST_WAIT, 50 / times.rate)
    assert times.next(50, 1) == pytest.approx(min(expected, LONGEST_WAIT))


class Crowd:
    """Clients that come within some seconds and try twice more, before 16 at once of 80 places."""

    NUM_SEQS = 16

    def __init__(self, seconds_each: float) -> None:
        self.clock = HandClock()
        self.times = RetryTimes(PLACES, self.clock)
        self.seconds_each = seconds_each
        self.num_taken = self.num_served = self.num_lost = 0
        self._events: list[tuple[float, int, int | None]] = []
        self._order = itertools.count()

    def run(self, num_clients: int, within: float) -> None:
        for i in range(num_clients):
            self._at(self.clock.now + within * i / num_clients, 0)
        while self._events:
            at, _, attempt = heapq.heappop(self._events)
            self.clock.turn(max(0.0, at - self.clock.now))
            full, num_taken = self.num_taken >= self.NUM_SEQS, self.num_taken
            if attempt is None:
                self._finish()
                while self._events and self._events[0][::2] == (at, None):  # one step's
                    heapq.heappop(self._events)
                    self._finish()
                self.times.observe(full=full, num_finished=num_taken - self.num_taken)
            else:
                self.times.observe(full=full)
                self._come(attempt)

    def _at(self, moment: float, attempt: int | None) -> None:
        """A client comes for this attempt, or a request ends."""
        heapq.heappush(self._events, (moment, next(self._order), attempt))

    def _begin(self) -> None:
        self._at(self.clock.now + self.seconds_each, None)

    def _finish(self) -> None:
        self.num_taken -= 1
        self.num_served += 1
        if self.num_taken >= self.NUM_SEQS:
            self._begin()

    def _come(self, attempt: int) -> None:
        if self.num_taken == PLACES:
            if attempt == 2:
                self.num_lost += 1
            else:
                wait = self.times.next(PLACES - self.NUM_SEQS, 1)
                self._at(self.clock.now + wait, attempt + 1)
            return
        if self.num_taken < self.NUM_SEQS:
            self._begin()
        self.num_taken += 1


@pytest.mark.parametrize("within", [0.1, 1.0, 2.0])
@pytest.mark.parametrize("seconds_each", [0.02, 0.1, 0.3, 0.5, 1.0, 1.2])
def test_two_retries_are_enough_for_a_thousand(seconds_each: float, within: float) -> None:
    """The engine is new, its speed not yet seen; it needs 1 to 75 seconds for them."""
    crowd = Crowd(seconds_each)
    crowd.run(1000, within)
    assert (crowd.num_served, crowd.num_lost) == (1000, 0)
    assert crowd.clock.now < 1000 * seconds_each / Crowd.NUM_SEQS + LONGEST_WAIT


def test_an_engine_whose_speed_is_known_is_kept_busy() -> None:
    crowd = Crowd(0.2)
    crowd.times = seen(crowd.clock, Crowd.NUM_SEQS / 0.2)
    begun = crowd.clock.now
    crowd.run(1000, 0.5)
    assert (crowd.num_served, crowd.num_lost) == (1000, 0)
    assert crowd.clock.now - begun < 1.2 * 1000 * 0.2 / Crowd.NUM_SEQS

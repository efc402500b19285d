"""Arrivals are the process that was asked for: these tests fail for any other."""

import math

import numpy as np
import pytest

from nsa_serve.bench.serve.arrivals import arrival_times, unit_process
from nsa_serve.bench.serve.options import LoadShape

COUNT = 20_000


def _rng() -> np.random.Generator:
    return np.random.default_rng(7)


def _gaps(shape: LoadShape) -> np.ndarray:
    return np.diff(arrival_times(shape, COUNT, _rng()))


def _distance_from_exponential(gaps: np.ndarray, rate: float) -> float:
    """Kolmogorov and Smirnov's statistic, times √n: above 1.63 in one of a hundred such samples."""
    ordered = np.sort(gaps)
    expected = 1.0 - np.exp(-rate * ordered)
    above = np.arange(1, len(ordered) + 1) / len(ordered) - expected
    below = expected - np.arange(len(ordered)) / len(ordered)
    return float(max(above.max(), below.max()) * math.sqrt(len(ordered)))


def test_a_poisson_process_has_exponential_gaps() -> None:
    gaps = _gaps(LoadShape(request_rate=5.0))
    assert _distance_from_exponential(gaps, 5.0) < 1.63


@pytest.mark.parametrize("burstiness", [0.9, 1.1])
def test_the_test_of_a_poisson_process_can_fail(burstiness: float) -> None:
    gaps = _gaps(LoadShape(request_rate=5.0, burstiness=burstiness))
    assert _distance_from_exponential(gaps, 5.0) > 3.0


def test_a_poisson_process_forgets() -> None:
    """Counts in windows have the variance of their mean, and gaps do not follow one another."""
    times = arrival_times(LoadShape(request_rate=50.0), COUNT, _rng())
    counts = np.bincount(times.astype(int))[:-1]
    assert counts.var() / counts.mean() == pytest.approx(1.0, abs=0.25)
    gaps = np.diff(times)
    assert abs(np.corrcoef(gaps[:-1], gaps[1:])[0, 1]) < 0.03


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_gaps_have_the_mean_of_the_rate_and_the_variance_of_the_burstiness(
    burstiness: float,
) -> None:
    gaps = _gaps(LoadShape(request_rate=8.0, burstiness=burstiness))
    assert gaps.mean() == pytest.approx(1 / 8, rel=0.05)
    assert gaps.var() / gaps.mean() ** 2 == pytest.approx(1 / burstiness, rel=0.1)


def test_infinite_burstiness_is_a_metronome() -> None:
    shape = LoadShape(request_rate=4.0, burstiness=math.inf)
    assert list(arrival_times(shape, 4, _rng())) == [0.0, 0.25, 0.5, 0.75]


def test_an_infinite_rate_is_all_at_once() -> None:
    assert list(arrival_times(LoadShape(), 3, _rng())) == [0.0, 0.0, 0.0]


def test_arrivals_begin_at_zero_and_depend_on_the_generator_only() -> None:
    shape = LoadShape(request_rate=3.0)
    times = arrival_times(shape, 50, _rng())
    assert times[0] == 0.0
    assert np.array_equal(times, arrival_times(shape, 50, _rng()))
    assert not np.array_equal(times, arrival_times(shape, 50, np.random.default_rng(8)))
    assert len(unit_process(1.0, 0, _rng())) == 0


@pytest.mark.parametrize("start", [2.0, 30.0])
def test_a_linear_ramp_reaches_its_end_rate_evenly(start: float) -> None:
    shape = LoadShape(
        ramp_up="linear", ramp_up_start_rps=start, ramp_up_end_rps=10.0, burstiness=math.inf
    )
    times = arrival_times(shape, 6000, _rng())
    rates = 1.0 / np.diff(times)
    duration = 2 * 6000 / (start + 10.0)
    assert times[-1] == pytest.approx(duration, rel=1e-3)
    assert rates[[0, -1]] == pytest.approx([start, 10.0], rel=0.01)
    halfway = np.searchsorted(times, duration / 2)
    assert rates[halfway] == pytest.approx((start + 10.0) / 2, rel=0.01)


def test_an_exponential_ramp_multiplies_evenly() -> None:
    shape = LoadShape(
        ramp_up="exponential", ramp_up_start_rps=1.0, ramp_up_end_rps=100.0, burstiness=math.inf
    )
    times = arrival_times(shape, 6000, _rng())
    rates = 1.0 / np.diff(times)
    halfway = np.searchsorted(times, times[-1] / 2)
    assert rates[halfway] == pytest.approx(10.0, rel=0.01)
    assert rates[-1] == pytest.approx(100.0, rel=0.01)


def test_a_flat_ramp_is_a_rate_and_late_arrivals_keep_the_end_rate() -> None:
    flat = LoadShape(ramp_up="linear", ramp_up_start_rps=5.0, ramp_up_end_rps=5.0)
    assert np.array_equal(
        arrival_times(flat, 100, _rng()), arrival_times(LoadShape(request_rate=5.0), 100, _rng())
    )
    bursty = LoadShape(
        ramp_up="linear", ramp_up_start_rps=1.0, ramp_up_end_rps=9.0, burstiness=0.05
    )
    for seed in range(20):  # some of these end long after the ramp
        times = arrival_times(bursty, 40, np.random.default_rng(seed))
        assert np.isfinite(times).all()
        assert (np.diff(times) >= 0.0).all()

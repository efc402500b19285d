"""When requests arrive: a renewal process of rate one, stretched to the rate that is asked for.

Gaps of the unit process are gamma distributed with mean one. The k-th request arrives when the
expected number of arrivals, Λ(t) = ∫ rate, reaches the unit process's k-th time. A constant rate
and both ramps differ in Λ⁻¹ only.
"""

import math

import numpy as np
import numpy.typing as npt

from nsa_serve.bench.serve.options import LoadShape

Times = npt.NDArray[np.float64]


def arrival_times(shape: LoadShape, count: int, rng: np.random.Generator) -> Times:
    """Seconds from the start at which `count` requests arrive; the first one at 0."""
    if not shape.is_open:
        return np.zeros(count)
    unit = unit_process(shape.burstiness, count, rng)
    if shape.ramp_up is None:
        return unit / shape.request_rate
    start, end = shape.ramp_up_start_rps, shape.ramp_up_end_rps
    if math.isclose(start, end):
        return unit / start
    ramp = _linear if shape.ramp_up == "linear" else _exponential
    return ramp(unit, start, end)


def unit_process(burstiness: float, count: int, rng: np.random.Generator) -> Times:
    """Times of a renewal process whose gaps have mean 1 and variance 1 / burstiness."""
    if math.isinf(burstiness):
        return np.arange(count, dtype=np.float64)
    gaps = rng.gamma(burstiness, 1.0 / burstiness, max(count - 1, 0))
    return np.concatenate([np.zeros(min(count, 1)), np.cumsum(gaps)])


def _linear(unit: Times, start: float, end: float) -> Times:
    """Λ(t) = start·t + (end − start)·t² / 2T until T, the end of the ramp; `end` a second after."""
    expected = len(unit)
    duration = 2.0 * expected / (start + end)
    slope = (end - start) / duration
    inside = np.minimum(unit, expected)
    times = (np.sqrt(start * start + 2.0 * slope * inside) - start) / slope
    return _after(times, unit, expected, end)


def _exponential(unit: Times, start: float, end: float) -> Times:
    """The rate is start·(end / start)^(t / T) until T, and `end` after."""
    expected = len(unit)
    growth = (end - start) / expected  # the exponent per second: rate grows by it per arrival
    inside = np.minimum(unit, expected)
    times = np.log1p(growth * inside / start) / growth
    return _after(times, unit, expected, end)


def _after(times: Times, unit: Times, expected: int, rate: float) -> Times:
    return times + np.maximum(unit - expected, 0.0) / rate

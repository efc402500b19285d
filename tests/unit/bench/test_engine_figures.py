"""What is made of the moments when tokens came."""

import subprocess
import sys

import pytest

from nsa_serve.bench.engine import common_steps, random_lengths, spread


def test_steps_count_while_all_of_a_batch_decode() -> None:
    early, late = [1.0, 2.0, 3.0, 4.0], [2.0, 3.0, 4.0, 6.0]
    assert list(common_steps([early, late])) == [1.0, 1.0]


def test_requests_that_never_decode_together_have_no_steps() -> None:
    assert list(common_steps([[1.0, 2.0], [3.0, 4.0]])) == []


def test_one_request_has_all_its_steps() -> None:
    assert list(common_steps([[1.0, 1.5, 2.5]])) == [0.5, 1.0]


def test_a_spread_is_in_milliseconds() -> None:
    found = spread([0.001 * i for i in range(101)])
    assert found is not None
    assert (found.mean, found.p50, found.p90, found.p99) == pytest.approx((50, 50, 90, 99))
    assert found.count == 101
    assert spread([]) is None


def test_lengths_vary_within_bounds_and_not_between_calls() -> None:
    lengths = random_lengths(500, 100, 0.5)
    assert lengths == random_lengths(500, 100, 0.5)
    assert (min(lengths), max(lengths)) == (50, 100)
    assert random_lengths(3, 7, 0.0) == [7, 7, 7]
    assert min(random_lengths(100, 1, 0.9)) == 1


def test_start_up_counts_from_the_beginning_of_the_process() -> None:
    code = (
        "import time; time.sleep(0.5); from nsa_serve.bench.engine import process_age;"
        "print(process_age())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert float(done.stdout) > 0.5

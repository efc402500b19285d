"""What is compiled at first use: said once, and kept where there is a place for it."""

from typing import Any

import pytest

pytest.importorskip("numba")

from numba import njit

from nsa_serve.model import fused
from nsa_serve.model.compiled import telling_of_compilation


def test_compilation_is_told_once_and_only_if_there_is_any() -> None:
    told: list[str] = []
    first, second = (njit(lambda x, y=y: x + y) for y in (1, 2))
    for _ in range(2):
        with telling_of_compilation(lambda: told.append("compiling")):
            assert (first(1), second(1)) == (2, 3)
    assert told == ["compiling"]


def test_without_a_place_to_keep_it_a_function_is_compiled_all_the_same() -> None:
    found: dict[str, Any] = {}
    exec("def twice(x): return 2 * x", found)  # no file: numba knows no place beside it
    with pytest.raises(RuntimeError):
        njit(cache=True)(found["twice"])
    assert fused.kept(found["twice"])(4) == 8

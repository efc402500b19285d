"""Whatever a field of a config.json holds, the checkpoint loads or is refused in one line."""

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import msgspec
import pytest

from nsa_serve.errors import ModelLoadError
from nsa_serve.model.loading.families import family_of
from nsa_serve.model.loading.folder import shapes_of
from nsa_serve.model.loading.weights import plan_tensors
from tests.support.originals.every import WRITERS

VALUES: list[Any] = [..., None, -1, 0, 1, 3, 10**9, 10**30, 2.5, 1e308, "x", [], [1], {}, {"a": 1}]
"""`...` removes the field."""


def _places(fields: dict[str, Any], before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, value in fields.items():
        yield (*before, name)
        if isinstance(value, dict):
            yield from _places(value, (*before, name))


def _with(fields: dict[str, Any], place: tuple[str, ...], value: Any) -> dict[str, Any]:
    changed = deepcopy(fields)
    inner = changed
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    if value is ...:
        del inner[place[-1]]
    return changed


@pytest.mark.parametrize("family", WRITERS)
def test_any_value_of_any_field_loads_or_is_refused_in_one_line(
    family: str, tmp_path: Path
) -> None:
    WRITERS[family](tmp_path)
    path = tmp_path / "config.json"
    shapes = shapes_of(tmp_path)
    fields: dict[str, Any] = msgspec.json.decode(path.read_bytes())
    refused: list[tuple[Any, ...]] = []
    for place in _places(fields):
        for value in VALUES:
            changed = _with(fields, place, value)
            try:
                found = family_of(path, changed)
                config = found.read_config(path, changed, shapes)
                plan_tensors(tmp_path, found, shapes, config, config)
            except ModelLoadError as error:
                refused.append((str(error), place, value))
    assert len(refused) > len(fields)
    for line, *what in refused:
        assert line.startswith(str(tmp_path)), what
        assert "\n" not in line, what

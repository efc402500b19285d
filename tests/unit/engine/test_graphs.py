"""Which CUDA graphs are captured when, and which one runs a step. No GPU: nothing is captured."""

import pytest
import torch

from nsa_serve.engine.gpu_inputs import BlockTables, Uploader
from nsa_serve.engine.graphs import (
    DecodeSteps,
    GraphKey,
    batch_sizes,
    first_sizes,
    smallest_that_holds,
    stand_in,
)

CPU = torch.device("cpu")


class Steps(DecodeSteps):
    """Steps that note what they would capture."""

    def __init__(self, max_batch: int, max_context: int) -> None:
        super().__init__(
            lambda buffers, key: None,
            BlockTables(max_batch, 4, CPU),
            Uploader(CPU),
            max_batch=max_batch,
            max_context=max_context,
            use_graphs=False,
        )
        self._use_graphs = True
        self.captured: list[GraphKey] = []

    def capture(self, key: GraphKey) -> None:
        self.captured.append(key)
        self._graphs[key] = None  # type: ignore[assignment]

    def take(self, num_rows: int, num_tokens: int) -> GraphKey:
        """The graph of a step, which is captured if it is not there."""
        key = self.key(num_rows, num_tokens, lists_slots=False)
        if key not in self._graphs:
            self.capture(key)
        return key


@pytest.mark.parametrize("largest", [1, 2, 3, 5, 7, 64, 100, 256, 300, 512, 1000])
def test_every_size_has_a_first_one_of_at_most_its_double(largest: int) -> None:
    sizes = batch_sizes(largest)
    first = first_sizes(sizes)
    assert first == sorted(set(first))
    assert set(first) <= set(sizes)
    for size in sizes:
        assert smallest_that_holds(first, size) <= 2 * size


def test_a_stand_in_computes_all_that_is_wanted() -> None:
    small, large = GraphKey(32, 1024, False), GraphKey(64, 8192, True)
    assert stand_in(GraphKey(24, 1024, False), [large, small]) == small
    assert stand_in(GraphKey(24, 1024, True), [small, large]) is None  # twice the rows at most
    assert stand_in(GraphKey(32, 8192, False), [small, large]) == large
    assert stand_in(GraphKey(64, 65536, False), [small, large]) is None
    assert stand_in(GraphKey(8, 1024, False), [GraphKey(16, 1024, False)]) is None
    assert stand_in(GraphKey(8, 1024, False), [GraphKey(8, 8192, True)]) is not None


def test_a_batch_that_shrinks_captures_nothing() -> None:
    steps = Steps(256, 131_072)
    steps.capture_first(lists_slots=False)
    steps.captured.clear()
    for num_rows in (256, 240, 224, 208, 192, 176, 160, 144, 128, 96, 48, 24, 16, 3, 1):
        assert steps.take(num_rows, 600).batch >= num_rows
    assert steps.captured == []


def test_what_is_wanted_for_long_is_captured() -> None:
    steps = Steps(256, 131_072)
    steps.capture(GraphKey(256, 131_072, False))
    keys = [steps.take(200, 70_000) for _ in range(12)]
    assert keys[0].batch == 256
    assert keys[-1] == GraphKey(224, 131_072, False)
    assert steps.captured[1:] == [keys[-1]]


def test_the_shortest_context_has_its_graphs_whatever_time_they_take(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("nsa_serve.engine.graphs._SECONDS_FOR_MORE", -1.0)
    steps = Steps(8, 100_000)
    steps.capture_first(lists_slots=True)
    assert steps.captured == [GraphKey(n, 1024, True) for n in (8, 4, 2, 1)]
    with_time = Steps(8, 100_000)
    monkeypatch.setattr("nsa_serve.engine.graphs._SECONDS_FOR_MORE", 1000.0)
    with_time.capture_first(lists_slots=False)
    contexts = [key.context for key in with_time.captured]
    assert list(dict.fromkeys(contexts)) == [1024, 100_000, 8192, 65_536]

"""What the cache is said to cost is what it takes, and what is refused is said in one line."""

import pytest
import torch

from nsa_kernels.cache import LayerCache
from nsa_serve.config import EngineConfig
from nsa_serve.engine.memory import (
    cache_cost,
    cache_table,
    check_cpu_memory,
    free_cpu_cache_bytes,
    num_pages_that_fit,
    page_size_of,
)
from nsa_serve.errors import ConfigError
from nsa_serve.model.paged import cache_layouts
from tests.support.dialects import DIALECTS, MODELS, model_config

GIB = 1 << 30


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MODELS)
def test_a_page_takes_the_bytes_that_it_is_said_to(name: str, dtype: torch.dtype) -> None:
    config = MODELS[name]
    for page_size in (16, 48):
        caches = [
            LayerCache.allocate(layout, 5, dtype, torch.device("cpu"))
            for layout in cache_layouts(config, page_size)
        ]
        storages = {t.untyped_storage().data_ptr(): t.nbytes for c in caches for t in c.tensors}
        cost = cache_cost(config, page_size, dtype)
        assert 5 * cost.page_bytes == sum(storages.values()) == sum(c.num_bytes for c in caches)


def test_independent_keys_cost_three_caches_and_keys_only_slots_half() -> None:
    shared = cache_cost(MODELS["base"], 16, torch.float32).bytes_per_token
    own = cache_cost(MODELS["paper"], 16, torch.float32).bytes_per_token
    selected_only = cache_cost(MODELS["built_in"], 16, torch.float32).bytes_per_token
    assert own["kv"] == own["window"] == own["phi"] == shared["kv"]
    assert set(shared) == {"kv", "compressed"}
    assert selected_only["compressed"] == shared["compressed"] / 2


def test_erased_pages_are_zero_in_every_tensor_and_no_other_is() -> None:
    (layout, *_) = cache_layouts(MODELS["narrow_values_independent"], 16)
    cache = LayerCache.allocate(layout, 4, torch.float32, torch.device("cpu"))
    for tensor in cache.tensors:
        tensor.fill_(torch.nan)
    cache.erase(torch.tensor([2, 0]))
    assert len(cache.tensors) == 8
    for tensor in cache.tensors:
        assert tensor.isnan().flatten(1).all(1).tolist() == [False, True, False, True]
        assert not bool(tensor[[0, 2]].any())


@pytest.mark.parametrize(
    ("name", "default", "good", "bad"),
    [("base", 64, 40, 12), ("wide_blocks", 64, 48, 24), ("dense", 64, 3, None)],
)
def test_pages_hold_whole_blocks(name: str, default: int, good: int, bad: int | None) -> None:
    config = MODELS[name]
    assert page_size_of(config, None) == default
    assert page_size_of(config, good) == good
    if bad is not None:
        with pytest.raises(ConfigError, match=f"block_size {bad} must be a multiple"):
            page_size_of(config, bad)


def test_the_cache_is_no_larger_than_memory_and_no_larger_than_useful() -> None:
    cost = cache_cost(MODELS["base"], 64, torch.float32)
    config = EngineConfig()
    assert num_pages_that_fit(config, cost, 1000, 10 * GIB, 3) == 3 * 16
    assert num_pages_that_fit(config, cost, 1000, 7 * cost.page_bytes + 5, 3) == 7
    assert num_pages_that_fit(EngineConfig(num_pages=9), cost, 1000, 0, 3) == 9
    with pytest.raises(ConfigError, match="no room for a cache"):
        num_pages_that_fit(config, cost, 1000, cost.page_bytes, 3)


def test_a_cpu_cache_takes_what_it_was_given_or_a_share_of_what_is_free() -> None:
    assert free_cpu_cache_bytes(EngineConfig(cpu_cache_gib=1.5)) == 3 * GIB // 2
    assert 0 < free_cpu_cache_bytes(EngineConfig()) <= 4 * GIB


def test_the_table_counts_the_sequences_that_fit() -> None:
    cost = cache_cost(model_config(DIALECTS["base"]), 64, torch.float32)
    lines = cache_table(cost, num_pages=100, max_model_len=5000).splitlines()
    assert "100 pages of 64 tokens = 6,400 tokens" in lines[0]
    rows = {int(a.replace(",", "")): int(b) for a, b in (line.split() for line in lines[3:])}
    assert rows == {1024: 100 // 16, 4096: 100 // 64, 5000: 100 // 79}


def test_a_cache_beyond_memory_is_refused_with_both_sizes() -> None:
    check_cpu_memory(2**20)
    with pytest.raises(ConfigError, match=r"it needs 1000000\.0 GiB, .* GiB are free"):
        check_cpu_memory(10**6 * GIB)

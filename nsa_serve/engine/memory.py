"""How much cache fits: bytes of pages, and the table that says what they hold."""

from dataclasses import dataclass

import torch

from nsa_kernels.cache import CacheLayout
from nsa_kernels.geometry import num_pages_for, page_size_for
from nsa_serve.config import EngineConfig, ModelConfig
from nsa_serve.errors import ConfigError
from nsa_serve.model.paged import cache_layouts

GIB = 1 << 30
_MAX_CPU_CACHE = 4 * GIB
_CPU_SHARE = 0.25
_CONTEXTS = (1024, 4096, 8192, 32_768, 65_536, 131_072)


@dataclass(frozen=True, slots=True)
class CacheCost:
    """Bytes that a token costs over all layers, by what they hold; lengths in tokens."""

    page_size: int
    bytes_per_token: dict[str, float]

    @property
    def page_bytes(self) -> int:
        """Bytes of one page id: its tokens and slots in every layer."""
        return round(self.page_size * sum(self.bytes_per_token.values()))

    @property
    def compressed_page_bytes(self) -> int:
        """Of these, what compressed keys and values take."""
        return round(self.page_size * self.bytes_per_token.get("compressed", 0.0))


def page_size_of(config: ModelConfig, wanted: int | None) -> int:
    """The page size asked for, or the best. Raises ConfigError if blocks do not fit it."""
    if config.nsa is None:
        return wanted or page_size_for(1, 1)
    unit = page_size_for(config.nsa.select_block, config.nsa.compress_stride, at_least=1)
    if wanted is not None and wanted % unit:
        raise ConfigError(f"block_size {wanted} must be a multiple of {unit} for this model")
    return wanted or page_size_for(config.nsa.select_block, config.nsa.compress_stride)


def cache_cost(config: ModelConfig, page_size: int, dtype: torch.dtype) -> CacheCost:
    """What a token costs."""
    total: dict[str, float] = {}
    layouts: list[CacheLayout] = cache_layouts(config, page_size)
    for layout in layouts:
        for name, elements in layout.elements_per_token.items():
            total[name] = total.get(name, 0.0) + elements * dtype.itemsize
    return CacheCost(page_size, total)


def num_pages_that_fit(
    config: EngineConfig, cost: CacheCost, max_model_len: int, free_bytes: int, max_num_seqs: int
) -> int:
    """Pages for the cache: what was asked for, or what fits, at most what can be used at once."""
    if config.num_pages is not None:
        return config.num_pages
    useful = max_num_seqs * num_pages_for(max_model_len, cost.page_size)
    fits = int(free_bytes // cost.page_bytes)
    if fits < 2:
        raise ConfigError(
            f"no room for a cache: one page needs {cost.page_bytes / 2**20:.1f} MiB, "
            f"{free_bytes / 2**20:.1f} MiB are free for it"
        )
    return min(useful, fits)


def free_cpu_cache_bytes(config: EngineConfig) -> int:
    """Bytes that the cache may take on a CPU."""
    if config.cpu_cache_gib is not None:
        return int(config.cpu_cache_gib * GIB)
    return int(min(_MAX_CPU_CACHE, available_memory() * _CPU_SHARE))


def check_cpu_memory(num_bytes: int) -> None:
    """Raise ConfigError for a cache that was asked for and that memory cannot hold: it would be
    given, and taken back by ending the process once it fills."""
    available = available_memory()
    if num_bytes > available:
        raise ConfigError(
            f"no memory for this cache: it needs {num_bytes / GIB:.1f} GiB, "
            f"{available / GIB:.1f} GiB are free; see cpu_cache_gib and num_pages"
        )


def available_memory() -> int:
    """Bytes of main memory that new work can have."""
    try:
        with open("/proc/meminfo") as file:
            fields = dict(line.split(":", 1) for line in file)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return 4 * GIB


def cache_table(cost: CacheCost, num_pages: int, max_model_len: int) -> str:
    """What the cache holds, for people."""
    tokens = num_pages * cost.page_size
    parts = ", ".join(f"{k} {v / 1024:.2f}" for k, v in cost.bytes_per_token.items())
    per_token = sum(cost.bytes_per_token.values()) / 1024
    lines = [
        f"cache {num_pages * cost.page_bytes / GIB:.2f} GiB = {num_pages} pages of "
        f"{cost.page_size} tokens = {tokens:,} tokens",
        f"{per_token:.2f} KiB per token ({parts})",
        "context  sequences that fit at once",
    ]
    contexts = [*(c for c in _CONTEXTS if c < max_model_len), max_model_len]
    lines += [f"{c:7,}  {num_pages // num_pages_for(c, cost.page_size):,}" for c in contexts]
    return "\n".join(lines)

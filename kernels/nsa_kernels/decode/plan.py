"""How decode work is cut into programs: constants to measure, and shapes that follow from them.

Nothing here may depend on the batch. What depends on `max_context` bounds grids and workspaces
only: how a row is cut follows, on the device, from its own position.
"""

from dataclasses import dataclass

from nsa_kernels.spec import SparseSpec

LOG2E = 1.4426950408889634


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitRule:
    """Keys of one split of a row, by the keys that the row reads."""

    small: int
    medium: int
    large: int
    medium_from: int
    """A row with more keys than this is cut into medium splits."""
    large_from: int

    def in_tiles(self, tile: int) -> tuple[int, int, int, int, int]:
        """(small, medium, large, medium_from, large_from) in tiles of `tile` keys."""
        small, medium, large = (max(x // tile, 1) for x in (self.small, self.medium, self.large))
        return small, medium, large, self.medium_from // tile, self.large_from // tile

    def max_splits(self, max_tiles: int, tile: int) -> int:
        """Splits of the row, of at most `max_tiles` tiles, that has the most."""
        small, medium, large, medium_from, large_from = self.in_tiles(tile)
        most = -(-min(max_tiles, medium_from) // small)
        if max_tiles > medium_from:
            most = max(most, -(-min(max_tiles, large_from) // medium))
        if max_tiles > large_from:
            most = max(most, -(-max_tiles // large))
        return max(most, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """Constants of the kernels, as an H200 chose them for 64 heads in 4 groups of 128 dims."""

    compressed_split: SplitRule = SplitRule(
        small=64, medium=128, large=256, medium_from=1024, large_from=2048
    )
    compressed_tile: int = 64
    compressed_warps: int = 4
    compressed_stages: int = 3
    compressed_registers: int | None = 128
    """Of a thread, so that more programs run on a multiprocessor; None: what the compiler takes."""
    select_tile: int = 128
    """Blocks scored by one program, and candidates compared with each other at once."""
    select_warps: int = 4
    select_step: int = 16
    """Splits whose sums are read at once."""
    list_split: int = 128
    """Keys of one split of the selected blocks."""
    window_split: int = 256
    """Keys of one split of the window."""
    attend_tile: int = 64
    attend_warps: int = 4
    attend_stages: int = 3
    attend_registers: int | None = None
    merge_warps: int = 1
    merge_step: int = 16
    """Splits whose values are read at once."""
    merge_sums: int = 64
    """Splits whose sums are read at once."""
    half_parts: bool = True
    """Whether splits keep their values in the queries' type if that has 16 bits. They are means of
    values of that type, and their mean is rounded to it in the end."""
    dense_split: SplitRule = SplitRule(
        small=256, medium=512, large=2048, medium_from=8192, large_from=32768
    )
    dense_tile: int = 64
    dense_warps: int = 4
    dense_stages: int = 5
    dense_registers: int | None = None
    overlap_launches: bool = True
    """Programmatic dependent launch: a kernel's programs start before the last one has ended."""


TUNING = Tuning()


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << max(n - 1, 0).bit_length()


def padded(n: int) -> int:
    """n as the size of a dimension of a matrix product: a power of two, at least 16."""
    return max(power_of_two(n), 16)


SHARED_MEMORY = 227 * 1024
"""Bytes that one program of a Hopper GPU can have."""


def fit(
    tile: int, least: int, stages: int, group: int, head_dim: int, value_dim: int, item_bytes: int
) -> tuple[int, int]:
    """(tile, stages): up to `tile` keys at once, no fewer than `least`, `stages` of them under way.

    Besides keys and values, queries and weights lie in shared memory. A smaller tile comes before
    fewer stages: what waits for memory is the whole program.
    """
    dims = padded(head_dim) + padded(value_dim)

    def need(tile: int, stages: int) -> int:
        queries = padded(group) * (padded(head_dim) * item_bytes + tile * (item_bytes + 4))
        return stages * tile * dims * item_bytes + queries + 4096

    while tile > max(least, 16) and need(tile, stages) > SHARED_MEMORY:
        tile //= 2
    while stages > 1 and need(tile, stages) > SHARED_MEMORY:
        stages -= 1
    return tile, stages


def attend_tile(block: int, wanted: int, *splits: int) -> tuple[int, bool]:
    """Keys of a tile of the lists, and whether every tile lies within one block."""
    if block >= 32 and block == power_of_two(block) and all(s % block == 0 for s in splits):
        return min(wanted, block), True
    return min(wanted, *splits), False


@dataclass(frozen=True, slots=True, kw_only=True)
class PartPlan:
    """Room for the parts of one row and kv head: compressed, list, window."""

    of_slots: int = 0
    merges_slots: bool = True
    """Whether they are part of the output, and not of the scores only."""
    of_list: int = 0
    of_window: int = 0

    @property
    def list_part(self) -> int:
        """Where the list's begin."""
        return self.of_slots

    @property
    def window_part(self) -> int:
        """Where the window's begin."""
        return self.of_slots + self.of_list

    @property
    def total(self) -> int:
        return self.of_slots + self.of_list + self.of_window


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotPlan:
    """How compressed slots are cut into tiles of whole selection blocks."""

    slots_per_block: int
    padded_block: int
    """A block's places in a tile, a power of two."""
    tile_blocks: int
    spills: int
    """How many blocks before its own a slot can reach into."""
    rule: tuple[int, int, int, int, int]
    max_tiles: int
    max_splits: int

    @classmethod
    def make(cls, spec: SparseSpec, max_context: int, tile: int, tuning: Tuning) -> "SlotPlan":
        """For contexts of up to `max_context` tokens, in tiles of about `tile` slots."""
        per_block = spec.slots_per_block
        padded_block = power_of_two(per_block)
        overlap = spec.strides_per_slot - 1
        spills = -(-overlap // per_block)
        tile_blocks = max(tile, 16, padded_block) // padded_block
        slots = tile_blocks * per_block
        max_tiles = max(-(-spec.num_slots(max_context) // slots), 1)
        return cls(
            slots_per_block=per_block,
            padded_block=padded_block,
            tile_blocks=tile_blocks,
            spills=spills if spec.importance != "logit_mean" else 0,
            rule=tuning.compressed_split.in_tiles(slots),
            max_tiles=max_tiles,
            max_splits=tuning.compressed_split.max_splits(max_tiles, slots),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ListPlan:
    """Sizes of the lists of blocks that rows read."""

    capacity: int
    """Blocks that a row can select; one that selects all it sees has no list."""
    tile: int
    """Candidates compared with each other at once; more than twice the capacity."""
    max_blocks: int
    max_chunks: int
    list_split: int
    """Keys of one split."""
    window_split: int
    list_splits: int
    """As many as any row can have."""
    window_splits: int

    @classmethod
    def make(cls, spec: SparseSpec, max_context: int, tuning: Tuning) -> "ListPlan":
        """For contexts of up to `max_context` tokens."""
        block = spec.select_block
        max_blocks = max(-(-max_context // block), 1)
        extra = 0 if spec.forced_counted else spec.init_blocks + spec.local_blocks
        capacity = spec.num_selected + extra
        tile = max(tuning.select_tile, power_of_two(2 * capacity))
        everything = -(-min(spec.dense_len, max_context) // block)
        selected = min(max(capacity, everything), max_blocks) if spec.uses[1] else 0
        window = min((spec.window + block - 2) // block + 1, max_blocks) if spec.uses[2] else 0
        least = block if block == power_of_two(block) else 0
        list_split = max(tuning.list_split, least)
        window_split = max(tuning.window_split, least)
        return cls(
            capacity=capacity,
            tile=tile,
            max_blocks=max_blocks,
            max_chunks=-(-max_blocks // tile),
            list_split=list_split,
            window_split=window_split,
            list_splits=-(-selected * block // list_split),
            window_splits=-(-window * block // window_split),
        )

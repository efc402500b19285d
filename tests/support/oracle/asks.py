"""What to ask of a step's queries, so that every head's answer names what was read.

Of each kv head's queries some ask for a slot, some for a token in a block that must have been
selected, some for a token in the window, and some for what they must not see: a slot or token
after the query, one before the window, one in a block that was not selected.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from nsa_kernels.spec import SparseSpec
from tests.support.oracle.codes import Codes, Who

SLOT, SELECTED, WINDOW, FORBIDDEN = range(4)
"""Roles of heads: the first three are branches, in the order of the gates."""
_FUTURE_SLOT, _BEFORE_WINDOW, _AFTER_IN_WINDOW, _AFTER_IN_BLOCK, _LEFT_OUT = range(5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Compressed:
    """How φ makes a slot: its key is that of one token of each head, its value a sum of all."""

    key_token: Tensor
    """[kv_heads] which of the l tokens gives the key."""
    value_weights: Tensor
    """[kv_heads, l] powers of two"""
    rotated_at_start: bool
    """Whether φ reads raw keys, and the slot's is rotated at its first token's position."""


class StepTokens(NamedTuple):
    """The queries of a step."""

    positions: Tensor
    """[T] int64"""
    items: Tensor
    """[T] row of `origins`"""
    origins: Tensor
    """[items, positions] who made each token of the queries' sequences"""


@dataclass(frozen=True, slots=True)
class Asks:
    """Inputs of a layer for T queries, and what must come out."""

    q: Tensor
    """[T, H, D] before rotation"""
    q_compressed: Tensor
    """[T, H, D] rotated"""
    gates: Tensor
    """[T, H, 3]"""
    role: Tensor
    """[T, H]"""
    branch: Tensor
    """[T, H] the branch whose gate is open"""
    expected: Tensor
    """[T, H, Dv] the answer; for role `FORBIDDEN`, what the answer must not be"""
    slot_first: Tensor
    """[T, H] the first token of the slot that is asked for, where one is"""
    empty: Tensor
    """[T, H] whether there was nothing to read, so that the answer is zero."""


class Asker:
    """Draws what to ask."""

    def __init__(
        self,
        spec: SparseSpec,
        codes: Codes,
        phi: Compressed,
        *,
        kv_heads: int,
        group: int,
        independent: bool,
        seed: int,
    ) -> None:
        self.spec, self.codes, self.phi = spec, codes, phi
        self.kv_heads, self.group = kv_heads, group
        assert spec.compress_block <= spec.select_block
        forced = spec.init_blocks + spec.local_blocks
        assert spec.num_selected >= forced + 2, "a slot that is asked for may take a block's place"
        self.knows_left_out = spec.num_selected == forced + 2
        self._kinds = (0, 1, 2) if independent else (0, 0, 0)
        device = codes.device
        self._generator = torch.Generator(device).manual_seed(seed)
        self._heads = torch.arange(kv_heads, device=device)[:, None]
        self.places = torch.arange(group, device=device)

    def ask(self, tokens: StepTokens) -> Asks:
        """Something for every head of every query."""
        drawn = _Drawn(self, tokens)
        role, branch = drawn.role, drawn.branch
        is_slot = branch == SLOT
        slots = self._slot_values(tokens, drawn.slot)
        own = tokens.positions[:, None, None]
        token = self._token(tokens, drawn.token, torch.where(branch == WINDOW, 1, 0))
        expected = torch.where(is_slot[..., None], slots, self.codes.values(token))
        empty = is_slot & (role == SLOT) & (drawn.last_slot < self.spec.first_slot)
        expected = torch.where(empty[..., None], 0.0, expected)
        asked_slot = torch.where(is_slot, drawn.slot, drawn.scored_slot)
        q_compressed = self.codes.keys(self._slot_key(tokens, asked_slot))
        return Asks(
            q=self.codes.raw_keys(token, own).flatten(1, 2),
            q_compressed=q_compressed.flatten(1, 2),
            gates=torch.nn.functional.one_hot(branch, 3).float().flatten(1, 2),
            role=role.flatten(1),
            branch=branch.flatten(1),
            expected=expected.flatten(1, 2),
            slot_first=self._first(drawn.slot).flatten(1),
            empty=empty.flatten(1),
        )

    def between(self, low: Tensor, high: Tensor) -> Tensor:
        """[T, kv_heads, G] of [low, high], the ends more often than the rest; low where there is
        nothing between."""
        shape = (len(low), self.kv_heads, self.group)
        count = (high - low + 1).clamp_min(1)
        drawn = low + (self.random(*shape) * count).long()
        edge = self.random(*shape)
        drawn = torch.where(edge < 0.15, low, torch.where(edge > 0.75, high, drawn))
        return torch.where(high >= low, drawn, low)

    def random(self, *shape: int) -> Tensor:
        """Of [0, 1)."""
        return torch.rand(shape, generator=self._generator, device=self.codes.device)

    def integers(self, end: int, *shape: int) -> Tensor:
        """Of [0, end)."""
        return torch.randint(end, shape, generator=self._generator, device=self.codes.device)

    def _token(self, tokens: StepTokens, position: Tensor, branch_kind: Tensor) -> Who:
        kinds = torch.tensor(self._kinds, device=position.device)
        return Who(_origins(tokens, position), position, self._heads, kinds[branch_kind])

    def _slot_key(self, tokens: StepTokens, slot: Tensor) -> Who:
        """Whose key a slot has."""
        first = self._first(slot)
        source = first + self.phi.key_token[:, None]
        position = first if self.phi.rotated_at_start else source
        kind = torch.full_like(slot, self._kinds[2])
        return Who(_origins(tokens, source), position, self._heads, kind)

    def _slot_values(self, tokens: StepTokens, slot: Tensor) -> Tensor:
        first = self._first(slot)
        position = first[..., None] + torch.arange(self.spec.compress_block, device=slot.device)
        kind = torch.full_like(position, self._kinds[2])
        who = Who(_origins(tokens, position), position, self._heads[..., None], kind)
        weights = self.phi.value_weights[:, None]
        return self.codes.slot_values(first, who, weights)

    def _first(self, slot: Tensor) -> Tensor:
        """The first token that a slot reads; 0 for one that does not exist."""
        first = (slot + 1) * self.spec.compress_stride - self.spec.compress_block
        return first.clamp_min(0)


class _Drawn:
    """Targets [T, kv_heads, G] of one step."""

    def __init__(self, asker: Asker, tokens: StepTokens) -> None:
        spec = asker.spec
        self._asker, self._t = asker, tokens.positions[:, None, None]
        shift = asker.integers(4, len(tokens.positions), asker.kv_heads, 1)
        self.role = (asker.places + shift) % 4
        end = self._t if spec.strict else self._t + 1
        self.last_slot = end // spec.compress_stride - 1
        self._current = self._t // spec.select_block
        self._all = self._current < spec.num_selected
        low = torch.full_like(self._current, spec.init_blocks)
        high = self._current - max(spec.local_blocks, 1)
        self._block = asker.between(low, high)[..., :1]
        """The block that the group makes win."""
        self.scored_slot = self._within(self._block)
        visible = asker.between(torch.full_like(self.last_slot, spec.first_slot), self.last_slot)
        refusal = self._refusals(visible)
        choices = [visible, visible, visible, self.last_slot + 1]
        self.slot = _choose(self.role, choices).clamp_min(spec.first_slot)
        self.branch = torch.where(self.role == FORBIDDEN, refusal.branch, self.role)
        oldest = (self._t - spec.window + 1).clamp_min(0)
        window = asker.between(oldest, self._t)
        tokens_of_roles = [window, self._selected(), window, refusal.token]
        self.token = _choose(self.role, tokens_of_roles)

    def _within(self, block: Tensor) -> Tensor:
        """A slot that reads tokens of the block alone."""
        spec = self._asker.spec
        last = (block + 1) * spec.slots_per_block - 1
        return self._asker.between(last - spec.slots_per_block + spec.strides_per_slot, last)

    def _selected(self) -> Tensor:
        """A token that the selected branch must read."""
        spec, asker, t = self._asker.spec, self._asker, self._t
        which = asker.integers(8, *self.role.shape)
        init = asker.integers(max(spec.init_blocks, 1), *self.role.shape)
        local = self._current - asker.integers(max(spec.local_blocks, 1), *self.role.shape)
        block = self._block.expand(self.role.shape)
        if spec.init_blocks:
            block = torch.where(which == 0, init, block)
        if spec.local_blocks:
            block = torch.where(which >= 6, local, block)
        start = block * spec.select_block
        chosen = asker.between(start, torch.minimum(start + spec.select_block - 1, t))
        anything = asker.between(torch.zeros_like(t), t)
        return torch.where(self._all, anything, chosen)

    def _refusals(self, visible: Tensor) -> "_Refusal":
        """What heads of role `FORBIDDEN` ask for."""
        spec, asker, t = self._asker.spec, self._asker, self._t
        kind = asker.integers(5, len(t), asker.kv_heads, 1)
        left_out, known = self._left_out(visible)
        possible = torch.stack(
            [
                torch.full_like(known, asker.group % 4 == 0),
                (t >= spec.window).expand_as(known),
                torch.ones_like(known),
                torch.ones_like(known),
                known,
            ]
        )
        kind = torch.where(possible.gather(0, kind[None])[0], kind, _AFTER_IN_BLOCK)
        branch = torch.tensor([SLOT, WINDOW, WINDOW, SELECTED, SELECTED], device=t.device)[kind]
        before = (t - spec.window).clamp_min(0)
        token = _choose(kind, [t + 1, before, t + 1, t + 1, left_out])
        return _Refusal(branch, token)

    def _left_out(self, visible: Tensor) -> tuple[Tensor, Tensor]:
        """A token of a block that cannot have been selected, and whether one was found.

        What the others of the group ask for takes the last place in the list; so if that is sure
        to be a block of its own, nothing else can be there.
        """
        spec, asker = self._asker.spec, self._asker
        block = asker.between(
            torch.full_like(self._current, spec.init_blocks),
            self._current - max(spec.local_blocks, 1),
        )[..., :1]
        last = visible // spec.slots_per_block
        first = (visible - spec.strides_per_slot + 1).clamp_min(0) // spec.slots_per_block
        asks = self.role == SLOT
        touched = (asks & (first <= block) & (block <= last)).any(-1, keepdim=True)
        forced_from = self._current - spec.local_blocks
        rivals = (last != self._block) & (last >= spec.init_blocks) & (last <= forced_from)
        rival = (asks & rivals).any(-1, keepdim=True)
        known = ~self._all & (block != self._block) & ~touched & rival
        known = known & asker.knows_left_out
        return block * spec.select_block + spec.select_block // 2, known


class _Refusal(NamedTuple):
    branch: Tensor
    token: Tensor


def _choose(index: Tensor, choices: list[Tensor]) -> Tensor:
    """choices[index], elementwise."""
    shape = torch.broadcast_shapes(index.shape, *(choice.shape for choice in choices))
    stacked = torch.stack([choice.expand(shape) for choice in choices])
    return stacked.gather(0, index.expand(shape)[None])[0]


def _origins(tokens: StepTokens, position: Tensor) -> Tensor:
    """Who made the tokens at positions [T, ...] of each query's sequence."""
    items = tokens.items.view(-1, *[1] * (position.dim() - 1))
    return tokens.origins[items.expand_as(position), position]

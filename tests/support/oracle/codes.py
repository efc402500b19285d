"""Keys and values that say which token they are, in numbers that every dtype holds exactly.

A key is a row of quarter turns, one for each pair of its columns: the digits, in base 4, of the
token's position, of its origin, of its head and of its kind. The position's digits come from the
rotary table alone, whose angles are quarter turns too. Two tokens that differ anywhere have keys
whose product is at least 1 less than that of a key with itself, so under a large scale softmax
puts all of its weight on the key that equals the query.

A value is a 32-bit number, a scrambled identity, as bytes. Only one run of columns is not zero, the
one that belongs to the token's position modulo l: a compressed slot, a sum over l neighbours,
therefore still shows each of them.
"""

from typing import NamedTuple

import torch
from torch import Tensor

_POSITION_BITS, _ORIGIN_BITS, _HEAD_BITS, _KIND_BITS = 14, 12, 4, 2
MAX_POSITIONS = 1 << _POSITION_BITS
MAX_ORIGINS = 1 << _ORIGIN_BITS
_OTHER_PAIRS = (_ORIGIN_BITS + _HEAD_BITS + _KIND_BITS) // 2
_MULTIPLIERS = (0x9E3779B1, 0x85EBCA77)
_WORD = (1 << 32) - 1
NUM_BYTES = 4


class Who(NamedTuple):
    """Identities of tokens as one tensor for each part; shapes broadcast."""

    origin: Tensor
    """Which sequence made the token: those that share a prefix share its origins."""
    position: Tensor
    head: Tensor
    kind: Tensor
    """0: what the selected branch reads; 1: the window's own; 2: φ's own."""


class Codes:
    """Codes for keys of `head_dim` columns and values of `value_dim`, slots reading `block`
    tokens."""

    def __init__(
        self,
        head_dim: int,
        value_dim: int,
        block: int,
        device: torch.device,
        *,
        interleaved: bool = False,
    ) -> None:
        self.block, self.device, self.interleaved = block, device, interleaved
        position_pairs = head_dim // 2 - _OTHER_PAIRS
        assert position_pairs * 2 >= _POSITION_BITS, f"{head_dim} columns are too few"
        assert value_dim % (block * NUM_BYTES) == 0, f"{value_dim} columns are too few"
        self._copies = value_dim // (block * NUM_BYTES)
        digits = torch.arange(position_pairs, device=device) % (_POSITION_BITS // 2)
        self._position_shifts = 2 * digits
        self._columns = torch.arange(block, device=device)
        self._cos = torch.tensor([1.0, 0.0, -1.0, 0.0], device=device)
        self._sin = torch.tensor([0.0, 1.0, 0.0, -1.0], device=device)

    def angles(self, num_positions: int) -> Tensor:
        """[positions, D] cos of every pair, then sin."""
        turns = self._position_turns(torch.arange(num_positions, device=self.device))
        turns = torch.nn.functional.pad(turns, (0, _OTHER_PAIRS))
        return torch.cat([self._cos[turns], self._sin[turns]], -1)

    def keys(self, who: Who) -> Tensor:
        """[..., D] float32 as they are after rotation."""
        return self._turned(self._position_turns(who.position), who)

    def raw_keys(self, who: Who, rotated_at: Tensor | None = None) -> Tensor:
        """[..., D] float32 before rotation at the token's own position, or at another one: what
        a query there must be, to find the key."""
        turns = self._position_turns(who.position)
        back = turns if rotated_at is None else self._position_turns(rotated_at)
        return self._turned((turns - back) & 3, who)

    def values(self, who: Who) -> Tensor:
        """[..., Dv] float32: 1 to 256 in the token's own columns, 0 elsewhere."""
        digits = self._bytes(who)
        own = self._columns == (who.position % self.block)[..., None]
        return self._laid_out(own[..., None] * digits[..., None, :])

    def slot_values(self, first: Tensor, who: Who, weights: Tensor) -> Tensor:
        """[..., Dv] float32 of slots whose first token is at `first` [...]. `who` [..., l] are
        the tokens in order, `weights` [..., l] what each is multiplied by."""
        digits = self._bytes(who) * weights[..., None]
        order = (self._columns - first[..., None]) % self.block
        order = order.expand(digits.shape[:-1])[..., None].expand(digits.shape)
        return self._laid_out(digits.gather(-2, order))

    def describe(self, values: Tensor, scale: Tensor) -> str:
        """Which tokens the columns of values [Dv] name, times scale [l], for a reader of a
        failure."""
        runs = (values.view(self._copies, self.block, NUM_BYTES)[0] * scale[:, None]).tolist()
        names = []
        for digits in runs:
            if any(digit != digit for digit in digits):
                return "NaN"
            if any(digits):
                names.append(_name(digits))
        return ", ".join(names[:3]) + (", …" if len(names) > 3 else "") or "nothing"

    def _laid_out(self, runs: Tensor) -> Tensor:
        """[..., l, bytes] → [..., Dv]"""
        return runs.flatten(-2).repeat(*[1] * (runs.dim() - 2), self._copies)

    def _position_turns(self, position: Tensor) -> Tensor:
        return (position[..., None] >> self._position_shifts) & 3

    def _turned(self, position_turns: Tensor, who: Who) -> Tensor:
        parts = [position_turns]
        fields = (who.origin, who.head, who.kind)
        for field, bits in zip(fields, (_ORIGIN_BITS, _HEAD_BITS, _KIND_BITS), strict=True):
            shifts = torch.arange(0, bits, 2, device=self.device)
            parts.append((field[..., None] >> shifts) & 3)
        shape = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
        turns = torch.cat([part.expand(*shape, part.shape[-1]) for part in parts], -1)
        pairs = self._cos[turns], self._sin[turns]
        if self.interleaved:
            return torch.stack(pairs, -1).flatten(-2)
        return torch.cat(pairs, -1)

    def _bytes(self, who: Who) -> Tensor:
        """[..., 4] float32, 1 to 256."""
        word = who.position
        shift = _POSITION_BITS
        fields = (who.origin, who.head, who.kind)
        for field, bits in zip(fields, (_ORIGIN_BITS, _HEAD_BITS, _KIND_BITS), strict=True):
            word = word | (field << shift)
            shift += bits
        for multiplier in _MULTIPLIERS:
            word = (word * multiplier) & _WORD
            word = word ^ (word >> 16)
        shifts = torch.arange(0, 8 * NUM_BYTES, 8, device=self.device)
        return (((word[..., None] >> shifts) & 255) + 1).float()


def _name(digits: list[float]) -> str:
    """The identity whose scrambled bytes these are, if they are any's."""
    if any(digit != int(digit) or not 1 <= digit <= 256 for digit in digits):
        return f"no token ({', '.join(f'{digit:g}' for digit in digits)})"
    word = sum((int(digit) - 1) << (8 * i) for i, digit in enumerate(digits))
    for multiplier in reversed(_MULTIPLIERS):
        word ^= word >> 16
        word = word * pow(multiplier, -1, 1 << 32) & _WORD
    position = word & (MAX_POSITIONS - 1)
    word >>= _POSITION_BITS
    origin = word & (MAX_ORIGINS - 1)
    word >>= _ORIGIN_BITS
    return f"token {position} of {origin} (head {word & 15}, kind {word >> 4})"

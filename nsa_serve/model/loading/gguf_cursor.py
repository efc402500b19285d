"""Checked reads of GGUF's little-endian primitives; nothing outside the file is ever touched."""

import mmap
import struct
from typing import Any

import numpy as np

from nsa_serve.errors import ModelLoadError

Value = bool | int | float | str | list[Any]

_STRING, _ARRAY = 8, 9
_SCALARS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "|b1",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
"""GGUF value type to numpy type string."""
_U64 = struct.Struct("<Q")


class Cursor:
    """A place in a GGUF file that moves on with each read; raises `ModelLoadError` at its end."""

    def __init__(self, data: mmap.mmap, name: str) -> None:
        self._data = data
        self._name = name
        self.position = 0

    def fail(self, reason: str) -> ModelLoadError:
        """The error to raise here."""
        return ModelLoadError(f"{self._name}: {reason} (at byte {self.position})")

    def take(self, num_bytes: int) -> bytes:
        """The next bytes."""
        end = self.position + num_bytes
        if end > len(self._data):
            raise self.fail("the file ends too early")
        chunk = self._data[self.position : end]
        self.position = end
        return chunk

    def u32(self) -> int:
        """An unsigned 32-bit integer."""
        return int.from_bytes(self.take(4), "little")

    def u64(self) -> int:
        """An unsigned 64-bit integer."""
        return int.from_bytes(self.take(8), "little")

    def string(self) -> str:
        """A length and that many bytes of UTF-8."""
        return self.strings(1)[0]

    def strings(self, count: int) -> list[str]:
        """So many strings; a vocabulary has a hundred thousand of them, hence the tight loop."""
        data, position, size = self._data, self.position, len(self._data)
        result = []
        try:
            for _ in range(count):
                start = position + 8
                position = start + _U64.unpack_from(data, position)[0]
                if position > size:
                    raise self.fail("a string runs over the end of the file")
                result.append(data[start:position].decode())
        except struct.error:
            raise self.fail("the file ends within a list of strings") from None
        except UnicodeDecodeError:
            raise self.fail("a string is not UTF-8") from None
        self.position = position
        return result

    def value(self) -> Value:
        """A type and a value of that type."""
        kind = self.u32()
        if kind != _ARRAY:
            return self._values(kind, 1)[0]
        kind, count = self.u32(), self.u64()
        return self._values(kind, count)

    def _values(self, kind: int, count: int) -> list[Any]:
        if kind == _STRING:
            return self.strings(count)
        if kind not in _SCALARS:
            raise self.fail(f"value type {kind} is not known")
        dtype = np.dtype(_SCALARS[kind])
        return np.frombuffer(self.take(count * dtype.itemsize), dtype).tolist()

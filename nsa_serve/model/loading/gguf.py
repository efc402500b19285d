"""GGUF files: the header by a reader of our own, the numbers by the gguf package.

`gguf.GGUFReader` makes an array of each string and takes seconds for a vocabulary; this reads the
same header in a tenth of a second, and checks every length in it against the file.
"""

import math
import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from numpy.typing import NDArray

from nsa_serve.errors import ModelLoadError
from nsa_serve.model.loading.gguf_cursor import Cursor, Value
from nsa_serve.model.loading.json_file import one_line

T = TypeVar("T")

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MAX_DIMS = 4
_MAX_ALIGNMENT = 1 << 16
_SHORTEST_TENSOR_INFO = 8 + 4 + 8 + 4 + 8
"""Bytes: name length, number of dimensions, one dimension, type, offset."""


@dataclass(frozen=True, slots=True)
class GGUFTensor:
    """Where a tensor lies in its file."""

    shape: tuple[int, ...]
    """Rows first, as numpy has it; GGUF itself stores it backwards."""
    kind: Any
    """gguf's GGMLQuantizationType."""
    offset: int
    """Of its first byte, from the start of the file."""
    num_bytes: int


class GGUFFile:
    """The metadata and the tensors of one GGUF file.

    Raises `ModelLoadError` with one line for whatever is wrong with the header.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._data = _map(path)
        cursor = Cursor(self._data, path.name)
        num_tensors, num_values = _read_counts(cursor)
        self.metadata: dict[str, Value] = _read_metadata(cursor, num_values)
        self.tensors: dict[str, GGUFTensor] = self._read_tensors(cursor, num_tensors)

    def get(self, key: str, kind: type[T]) -> T:
        """A metadata value that must be there and of that type; an int will do for a float."""
        value = self.metadata.get(key)
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            found = "missing" if value is None else f"a {type(value).__name__}"
            raise ModelLoadError(f"{self.path.name}: {key} is {found}, expected {kind.__name__}")
        return value

    def get_list(self, key: str, kind: type[T]) -> list[T]:
        """A metadata list that must be there, all of its elements of that type."""
        values = self.get(key, list)
        if any(type(value) is not kind for value in values):
            raise ModelLoadError(f"{self.path.name}: {key} does not hold {kind.__name__} only")
        return values

    def read(self, name: str) -> NDArray[np.float32]:
        """The numbers of a tensor, dequantised."""
        tensor = self.tensors[name]
        raw = np.frombuffer(self._data, np.uint8, tensor.num_bytes, tensor.offset)
        try:
            numbers = dequantize(raw.reshape(*tensor.shape[:-1], -1), tensor.kind)
        except NotImplementedError as error:
            raise ModelLoadError(f"{self.path.name}: {name}: {one_line(error)}") from None
        return np.asarray(numbers.reshape(tensor.shape), np.float32)

    def _read_tensors(self, cursor: Cursor, count: int) -> dict[str, GGUFTensor]:
        if count * _SHORTEST_TENSOR_INFO > len(self._data):
            raise cursor.fail(f"{count} tensors do not fit the file")
        infos = [_read_tensor_info(cursor) for _ in range(count)]
        alignment = self._alignment()
        start = -(-cursor.position // alignment) * alignment
        tensors: dict[str, GGUFTensor] = {}
        for name, shape, kind, offset in infos:
            num_bytes = _num_bytes(cursor, name, shape, kind)
            if offset % alignment or start + offset + num_bytes > len(self._data):
                raise cursor.fail(f"the data of {name} is not aligned or not within the file")
            if name in tensors:
                raise cursor.fail(f"{name} is there twice")
            tensors[name] = GGUFTensor(shape, kind, start + offset, num_bytes)
        return tensors

    def _alignment(self) -> int:
        value = self.metadata.get("general.alignment", 32)
        valid = type(value) is int and 0 < value <= _MAX_ALIGNMENT and value & (value - 1) == 0
        if not valid:
            raise ModelLoadError(f"{self.path.name}: general.alignment {value!r} is no power of 2")
        assert isinstance(value, int)
        return value


def _map(path: Path) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except ValueError:
        raise ModelLoadError(f"{path} is empty") from None
    except OSError as error:
        raise ModelLoadError(f"{path}: {error.strerror}") from None


def _read_counts(cursor: Cursor) -> tuple[int, int]:
    if cursor.take(4) != _MAGIC:
        raise cursor.fail("this is no GGUF file")
    version = cursor.u32()
    if version not in _VERSIONS:
        raise cursor.fail(f"GGUF version {version} is not supported, 2 and 3 are")
    return cursor.u64(), cursor.u64()


def _read_metadata(cursor: Cursor, count: int) -> dict[str, Value]:
    metadata: dict[str, Value] = {}
    for _ in range(count):
        key = cursor.string()
        if key in metadata:
            raise cursor.fail(f"metadata key {key!r} is there twice")
        metadata[key] = cursor.value()
    return metadata


def _read_tensor_info(cursor: Cursor) -> tuple[str, tuple[int, ...], Any, int]:
    name = cursor.string()
    num_dims = cursor.u32()
    if not 1 <= num_dims <= _MAX_DIMS:
        raise cursor.fail(f"{name} has {num_dims} dimensions")
    shape = tuple(cursor.u64() for _ in range(num_dims))[::-1]
    kind = cursor.u32()
    try:
        return name, shape, GGMLQuantizationType(kind), cursor.u64()
    except ValueError:
        raise cursor.fail(f"{name} is of type {kind}, which is not known") from None


def _num_bytes(cursor: Cursor, name: str, shape: tuple[int, ...], kind: Any) -> int:
    block, block_bytes = GGML_QUANT_SIZES[kind]
    if min(shape) < 1 or shape[-1] % block:
        raise cursor.fail(f"{name} cannot have the shape {list(shape)}")
    return math.prod(shape) // block * block_bytes

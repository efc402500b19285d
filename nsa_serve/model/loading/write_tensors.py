"""Writing a safetensors file tensor by tensor, so that no model has to fit into memory twice."""

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import msgspec
import torch
from torch import Tensor

TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""By safetensors' names."""
Written = Callable[[float], None]
"""Called with the fraction written, 0 to 1."""


def write_tensors(
    path: Path,
    infos: Mapping[str, tuple[str, tuple[int, ...]]],
    tensors: Iterable[tuple[str, Tensor]],
    written: Written,
) -> None:
    """Write every tensor of `infos`, by name its type and shape, in whatever order they come."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offsets: dict[str, int] = {}
    end = 0
    for name, (kind, shape) in infos.items():
        start, end = end, end + math.prod(shape) * TYPES[kind].itemsize
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
        offsets[name] = start
    encoded = msgspec.json.encode(header)
    encoded += b" " * (-len(encoded) % 8)
    done = 0
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for name, tensor in tensors:
            kind, shape = infos[name]
            assert (tensor.dtype, tuple(tensor.shape)) == (TYPES[kind], shape), name
            file.seek(8 + len(encoded) + offsets.pop(name))
            file.write(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
            done += tensor.nbytes
            written(done / end)
    assert not offsets, offsets

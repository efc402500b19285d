"""The checkpoint families that load and convert, and which of them a config.json is of."""

from pathlib import Path
from typing import Any

from nsa_serve.config import ModelConfig
from nsa_serve.errors import ModelLoadError
from nsa_serve.model.loading.family import Family, Fields
from nsa_serve.model.loading.fla import FLA
from nsa_serve.model.loading.json_file import convert
from nsa_serve.model.loading.llama import read_llama_config
from nsa_serve.model.loading.llama_nsa import LLAMA_NSA
from nsa_serve.model.loading.lucidrains import LUCIDRAINS
from nsa_serve.model.loading.nsa_vibe import NSA_VIBE
from nsa_serve.model.loading.recipes import Shapes
from nsa_serve.model.loading.write import OUR_MODEL_TYPE
from nsa_serve.model.loading.xunhao import FSA, XUNHAO


def _read_ours(path: Path, fields: dict[str, Any], shapes: Shapes) -> ModelConfig:
    return convert(path, {k: v for k, v in fields.items() if k != "model_type"}, ModelConfig)


def _read_llama(path: Path, fields: dict[str, Any], shapes: Shapes) -> ModelConfig:
    return read_llama_config(path, fields)


OURS = Family(name=OUR_MODEL_TYPE, read_config=_read_ours)
LLAMA = Family(name="llama", read_config=_read_llama)
FAMILIES = (OURS, LLAMA, LLAMA_NSA, NSA_VIBE, FLA, XUNHAO, FSA, LUCIDRAINS)


def family_of(path: Path, fields: Fields) -> Family:
    """By what only one family's config.json says, else by `model_type`.

    Raises `ModelLoadError` that names all families if it is none of them.
    """
    model_type = fields.get("model_type")
    for family in FAMILIES:
        if family.fits(fields) or family.name == model_type:
            return family
    known = ", ".join(family.name for family in FAMILIES)
    found = "is missing" if model_type is None else f"{model_type!r} is not known"
    raise ModelLoadError(f"{path}: model_type {found}, expected one of: {known}")

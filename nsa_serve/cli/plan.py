"""`nsa-serve plan`: what a model needs and what fits where."""

import math
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import typer

from nsa_serve.cli.session import bring_built_in
from nsa_serve.config import ModelConfig
from nsa_serve.model.loading.folder import not_there, read_config
from nsa_serve.presets import find_preset

PlanDType = Literal["float32", "bfloat16", "float16", "int8"]

_MEMORY_GIB = (24.0, 80.0, 141.0)
_MODEL_HELP = "A model folder or a config.json; the built-in model unless given."
_PRESET_HELP = (
    "An architecture by name instead, as trained by `nsa-serve train`: see docs/train.md."
)
_MEMORY_HELP = "GiB to fit into; may be given several times. This machine's, 24, 80 and 141."


def plan(
    model: Annotated[str | None, typer.Argument(help=_MODEL_HELP)] = None,
    preset: Annotated[str | None, typer.Option(help=_PRESET_HELP)] = None,
    memory: Annotated[list[float] | None, typer.Option(help=_MEMORY_HELP)] = None,
    dtype: Annotated[PlanDType, typer.Option(help="Type of weights and cache.")] = "bfloat16",
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Say what a model needs and what fits where.

    This takes its configuration alone: no GPU and no weights.
    """
    from nsa_serve.cli.machine import memory_gib
    from nsa_serve.cli.plan_tables import print_plan
    from nsa_serve.engine.plan import make_plan

    if not all(math.isfinite(gib) for gib in memory or ()):
        raise typer.BadParameter("must be finite", param_hint="--memory")
    if model is not None and preset is not None:
        raise typer.BadParameter("takes the place of MODEL; give one", param_hint="--preset")
    name, config = _read_model(model) if preset is None else _of_preset(preset)
    this_machine = memory_gib()
    plan = make_plan(name, config, dtype, memory or [this_machine, *_MEMORY_GIB])
    if as_json:
        print(msgspec.json.encode(plan).decode())
    else:
        print_plan(plan, None if memory else this_machine)


def _read_model(model: str | None) -> tuple[str, ModelConfig]:
    if model and not Path(model).expanduser().exists():
        raise not_there(model)
    path = (Path(model).expanduser() if model else bring_built_in()).resolve()
    named = path.parent if path.name == "config.json" else path
    return named.name, read_config(path)


def _of_preset(name: str) -> tuple[str, ModelConfig]:
    preset = find_preset(name)
    return preset.name, preset.config

"""Flags that several commands share, made from the fields that they set.

`@engine_options` gives a command the engine's flags in the place of its parameter
`config: EngineConfig`; `@sampling_options` does the same for `sampling: Sampling`.
"""

import functools
import inspect
from collections.abc import Callable, Collection
from typing import Annotated, Any, get_type_hints

import msgspec
import typer

from nsa_serve.config import EngineConfig
from nsa_serve.errors import NsaServeError
from nsa_serve.params import SamplingParams

Command = Callable[..., None]
Sampling = dict[str, Any]
"""Fields of `SamplingParams` that were given: they stand above the model's own defaults."""

_MODEL_HELP = "A model folder; the built-in model unless given."
ModelArgument = Annotated[str | None, typer.Argument(help=_MODEL_HELP, metavar="MODEL")]
ModelOption = Annotated[str | None, typer.Option("--model", help=_MODEL_HELP)]

_ENGINE_HELP = {
    "attention": "auto is what the model was made for; dense attends to everything.",
    "dense_backend": "What computes dense attention on a GPU; sdpa is torch's.",
    "dtype": "Type of weights and cache; int8 is for CPUs, weights only.",
    "device": "auto, cpu, cuda or cuda:N.",
    "max_model_len": "Tokens of prompt and output together; the model's limit unless given.",
    "max_num_seqs": "Sequences that run at once; 64 unless given, on a GPU up to 256.",
    "max_num_batched_tokens": "Tokens that a step computes at most; 512, on a GPU 8192.",
    "block_size": "Tokens of one cache page.",
    "num_pages": "Pages of the cache; sized from memory unless given.",
    "gpu_memory_utilization": "Share of a GPU's memory for weights and cache.",
    "cpu_cache_gib": "Cache on a CPU; a quarter of the free memory, at most 4, unless given.",
    "enable_prefix_caching": "Compute a prefix that prompts share only once.",
    "scheduling_policy": "First come first served, or by the requests' priority.",
    "max_num_queued_reqs": "Requests that may wait; beyond, they are refused.",
    "num_threads": "Threads on a CPU; one per core unless given.",
    "enforce_eager": "On a GPU, do not replay decode steps as CUDA graphs.",
    "runner": "",
}
FOR_MANY = ("max_num_seqs", "max_num_queued_reqs", "scheduling_policy")
"""Fields that mean nothing to a command with one request at a time."""
_SAMPLING_HELP = {
    "max_tokens": "Length of the answer at most; what the context holds unless given.",
    "temperature": "0 always takes the likeliest token.",
    "top_p": "Sample from the likeliest tokens that have this probability together.",
    "top_k": "Sample from this many likeliest tokens; 0 from all.",
    "seed": "The same seed gives the same answer.",
    "stop": "End before this text; may be given several times.",
}


def engine_options(
    *, model: Any, hidden: Collection[str] = (), **defaults: Any
) -> Callable[[Command], Command]:
    """Replace `config` by `model`, an argument or option, and a flag for each other field;
    `defaults` are the command's own, and the flags in `hidden` are left out of its help."""
    types = get_type_hints(EngineConfig)
    flags = [
        _flag(
            field.name,
            types[field.name],
            defaults.get(field.name, field.default),
            "" if field.name in hidden else _ENGINE_HELP[field.name],
        )
        for field in msgspec.structs.fields(EngineConfig)
        if field.name != "model"
    ]
    flags.insert(0, _parameter("model", None, model))
    return lambda command: _replace(command, "config", flags, EngineConfig)


def sampling_options(command: Command) -> Command:
    """Replace `sampling` by the flags that say how tokens are chosen."""
    types = {**get_type_hints(SamplingParams), "stop": list[str]}
    flags = [_flag(name, types[name] | None, None, text) for name, text in _SAMPLING_HELP.items()]
    return _replace(command, "sampling", flags, _sampling)


def _sampling(*, max_tokens: int | None, stop: list[str] | None, **values: Any) -> Sampling:
    given = {name: value for name, value in values.items() if value is not None}
    sampling = {"max_tokens": max_tokens, "stop": tuple(stop or ()), **given}
    SamplingParams(**sampling)  # a bad value is found before a model is loaded
    return sampling


def _flag(name: str, kind: Any, default: Any, text: str) -> inspect.Parameter:
    option = typer.Option(help=text, hidden=not text)
    return _parameter(name, default, Annotated[kind, option])


def _parameter(name: str, default: Any, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
    )


def _replace(
    command: Command, name: str, flags: list[inspect.Parameter], build: Callable[..., Any]
) -> Command:
    """The command with `flags` in place of the parameter `name`; `build` makes its value."""
    signature = inspect.signature(command)
    own = [_keyword(p) for p in signature.parameters.values() if p.name != name]

    @functools.wraps(command)
    def with_flags(**values: Any) -> None:
        taken = {flag.name: values.pop(flag.name) for flag in flags}
        try:
            value = build(**taken)
        except NsaServeError as error:
            raise typer.BadParameter(str(error)) from None
        command(**values, **{name: value})

    with_flags.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*own, *flags]
    )
    return with_flags


def _keyword(parameter: inspect.Parameter) -> inspect.Parameter:
    return parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)

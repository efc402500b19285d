"""`nsa-serve train`: from a preset and data to a folder that serves."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
import typer

from nsa_serve.config import ModelConfig
from nsa_serve.errors import ConfigError
from nsa_serve.preset import Preset, changed
from nsa_serve.presets import find_preset
from nsa_serve.train.settings import TaskName, TrainSettings

if TYPE_CHECKING:
    import torch

_DEFAULT_PRESET = {"sequence": "devin", "text": "paper"}
_SEQUENCE_LENGTH = 32
_STEPS, _EPOCHS = 1000, 10
_BYTES_PER_PARAMETER = 16
"""Weight, gradient and two moments in float32."""
_WITH_RESUME = {"folder", "resume", "device", "num_threads"}

FolderArgument = Annotated[Path, typer.Argument(help="Where the model goes, or is resumed.")]
TaskOption = Annotated[
    TaskName | None,
    typer.Option(help="sequence: each digit the sum of the two before it; text: files of text."),
]
DataOption = Annotated[
    list[str] | None, typer.Option(help="A text file, byte by byte; may be given several times.")
]
TokenizerOption = Annotated[
    str | None, typer.Option(help="A folder with a tokenizer.json, in the place of bytes.")
]
PresetOption = Annotated[
    str | None,
    typer.Option(
        help="Architecture, see docs/train.md; devin for sequences, small paper for text."
    ),
]
SmallOption = Annotated[
    bool, typer.Option("--small", help="The same architecture at a size that a CPU trains.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="A field of the model, as num_layers=4 or nsa.window=64."),
]
DType = Literal["auto", "float32", "bfloat16"]
DTypeOption = Annotated[
    DType,
    typer.Option(help="Of products; auto is bfloat16 on a GPU. Weights are float32."),
]


def train(
    context: typer.Context,
    folder: FolderArgument,
    task: TaskOption = None,
    data: DataOption = None,
    tokenizer: TokenizerOption = None,
    preset: PresetOption = None,
    small: SmallOption = False,
    fields: SetOption = None,
    steps: Annotated[int | None, typer.Option(help="Steps; 1000 unless given.")] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the sequences instead; 10 unless given.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Sequences of a step.")] = None,
    sequence_length: Annotated[int | None, typer.Option(help="Tokens of a sequence.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Its highest.")] = None,
    warmup: Annotated[int | None, typer.Option(help="Steps over which it rises.")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="On matrices.")] = None,
    grad_clip: Annotated[float | None, typer.Option(help="Largest gradient norm; 0: any.")] = None,
    dropout: Annotated[float | None, typer.Option(help="Share that is dropped.")] = None,
    differentiable_selection: Annotated[
        bool, typer.Option(help="Let the loss reach the scores of the chosen blocks.")
    ] = False,
    seed: Annotated[int, typer.Option(help="The same seed trains the same model.")] = 0,
    checkpoint_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 500,
    evaluate_every: Annotated[int, typer.Option(help="Steps between validations.")] = 500,
    log_every: Annotated[int, typer.Option(help="Steps between lines of the log.")] = 10,
    dtype: DTypeOption = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    num_threads: Annotated[int | None, typer.Option(help="Of a CPU; one per core.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in the folder, as it was asked.")
    ] = False,
) -> None:
    """Train a model to serve.

    The folder is one that `nsa-serve serve` takes as it is. With a data file on text, byte by
    byte; without, on a sequence of digits.
    """
    if resume:
        _refuse_settings(context)
        _run(folder, None, device, num_threads)
        return
    task = task or ("text" if data else "sequence")
    small = small or (task == "text" and preset is None)  # paper itself is not for a first try
    chosen = find_preset(preset or _DEFAULT_PRESET[task])
    given: dict[str, Any] = {
        name: value
        for name, value in {
            "batch_size": batch_size,
            "sequence_length": sequence_length,
            "learning_rate": learning_rate,
            "warmup": warmup,
            "weight_decay": weight_decay,
            "grad_clip": grad_clip,
            "dropout": dropout,
        }.items()
        if value is not None
    }
    defaults = msgspec.structs.asdict(chosen.recommended_defaults)
    if task == "sequence":
        defaults["sequence_length"] = _SEQUENCE_LENGTH
    values = {**defaults, **given}
    settings = TrainSettings(
        model=_model(chosen, small, fields or [], task, tokenizer),
        task=task,
        data=tuple(str(Path(path).expanduser().absolute()) for path in data or ()),
        tokenizer=None if tokenizer is None else str(Path(tokenizer).expanduser().absolute()),
        steps=_steps(task, steps, epochs, values["batch_size"]),
        differentiable_selection=differentiable_selection,
        seed=seed,
        checkpoint_every=checkpoint_every,
        evaluate_every=evaluate_every,
        log_every=log_every,
        dtype=_dtype(dtype, device),
        **values,
    )
    _refuse_too_large(settings.model)
    _run(folder, settings, device, num_threads)


def _run(
    folder: Path, settings: TrainSettings | None, device: str, num_threads: int | None
) -> None:
    from nsa_serve.train.trainer import Trainer

    trainer = Trainer(folder.expanduser(), settings, _device(device, num_threads))
    try:
        result = trainer.run()
    except KeyboardInterrupt:
        done = f"{trainer.saved} of {trainer.settings.steps} steps are saved"
        print(f"{done}; go on: nsa-serve train {folder} --resume", file=sys.stderr)
        raise
    validation = result.validation_loss
    held_out = "" if validation is None else f", on held-out data {validation:.4f}"
    print(
        f"{result.steps} steps in {result.seconds:.0f} s: loss {result.loss:.4f}{held_out}\n"
        f"serve it: nsa-serve serve {folder}",
        file=sys.stderr,
    )


def _refuse_too_large(model: ModelConfig) -> None:
    """Before memory is asked for that is not there."""
    from nsa_serve.cli.machine import memory_gib
    from nsa_serve.engine.plan import num_parameters

    needed, there = num_parameters(model) * _BYTES_PER_PARAMETER / 2**30, memory_gib()
    if needed > there:
        raise ConfigError(
            f"weights, gradients and moments need {needed:.1f} GiB, there are {there:.1f}; "
            "--small or --set make a smaller model"
        )


def _refuse_settings(context: typer.Context) -> None:
    """What a run computes was decided when it began."""
    for name in context.params.keys() - _WITH_RESUME:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            flag = "--set" if name == "fields" else "--" + name.replace("_", "-")
            raise typer.BadParameter(
                f"goes on as it was asked, without {flag}", param_hint="--resume"
            )


def _model(
    preset: Preset, small: bool, fields: list[str], task: TaskName, tokenizer: str | None
) -> ModelConfig:
    from nsa_serve.train.task import vocab_size_of

    changes: dict[str, Any] = {"vocab_size": vocab_size_of(task, tokenizer)}
    for field in fields:
        name, separator, value = field.partition("=")
        if not separator:
            raise typer.BadParameter(f"{field!r} is not NAME=VALUE", param_hint="--set")
        if name.startswith("nsa."):
            changes.setdefault("nsa", {})[name.removeprefix("nsa.")] = _value(value)
        else:
            changes[name] = _value(value)
    return changed(preset.small_config if small else preset.config, changes)


def _value(text: str) -> Any:
    """JSON, or a word."""
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text


def _steps(task: TaskName, steps: int | None, epochs: int | None, batch_size: int) -> int:
    if steps is not None and epochs is not None:
        raise typer.BadParameter("takes the place of --steps; give one", param_hint="--epochs")
    if task == "text":
        if epochs is not None:
            raise ConfigError("text is drawn at random, it has no epochs; --steps says how long")
        return _STEPS if steps is None else steps
    if steps is not None:
        return steps
    from nsa_serve.train.sequences import NUM_SEQUENCES

    return (_EPOCHS if epochs is None else epochs) * -(-NUM_SEQUENCES // max(batch_size, 1))


def _device(wanted: str, num_threads: int | None) -> "torch.device":
    import torch

    from nsa_serve.engine.allocator import keep_freed_memory
    from nsa_serve.engine.load_model import choose_device

    keep_freed_memory()
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    return choose_device(wanted)


def _dtype(wanted: DType, device: str) -> Literal["float32", "bfloat16"]:
    if wanted != "auto":
        return wanted
    from nsa_serve.engine.load_model import choose_device

    return "bfloat16" if choose_device(device).type == "cuda" else "float32"

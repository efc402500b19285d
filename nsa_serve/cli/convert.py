"""`nsa-serve convert`: a checkpoint of another project becomes a model folder of ours."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from nsa_serve.engine.progress import ProgressBar

_SOURCE_HELP = "A folder with a config.json and weights, or a GGUF file of a Llama."
_TOKENIZER_HELP = "A folder whose tokenizer to take; the checkpoint's own unless given."


def convert(
    source: Annotated[Path, typer.Argument(help=_SOURCE_HELP, metavar="SRC")],
    target: Annotated[Path, typer.Argument(help="The folder to write.", metavar="DST")],
    tokenizer: Annotated[Path | None, typer.Option(help=_TOKENIZER_HELP)] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a model folder.")] = False,
) -> None:
    """Write any checkpoint as a model folder of ours.

    Of any family (docs/families.md). Weights keep their type. A folder of safetensors can be
    served without converting it.
    """
    from nsa_serve.model.loading.convert import convert_checkpoint

    percent = 0
    with ProgressBar(f"Converting {source.name}", 100, enabled=True) as bar:

        def report(_: str, fraction: float) -> None:
            nonlocal percent
            bar.advance(round(100 * fraction) - percent)
            percent = round(100 * fraction)

        family, folder = convert_checkpoint(
            source, target, tokenizer=tokenizer, force=force, progress=report
        )
    layers, heads = folder.config.num_layers, folder.config.num_heads
    print(f"{folder.path}: {family}, {layers} layers, {heads} heads", file=sys.stderr)

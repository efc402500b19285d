"""The commands of `nsa-serve`."""

from typing import Annotated

import typer

from nsa_serve import __version__
from nsa_serve.cli import bench
from nsa_serve.cli.chat import chat
from nsa_serve.cli.convert import convert
from nsa_serve.cli.doctor import doctor
from nsa_serve.cli.generate import generate
from nsa_serve.cli.help import HelpfulCommand
from nsa_serve.cli.plan import plan
from nsa_serve.cli.run_batch import run_batch
from nsa_serve.cli.serve import serve
from nsa_serve.cli.train import train

app = typer.Typer(
    help=(
        "Serve models with Native Sparse Attention.\n\n"
        "`nsa-serve serve` starts a server with the built-in model on http://127.0.0.1:8000; "
        "every COMMAND has a --help of its own, with examples."
    ),
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # its tables cut long flags short
    pretty_exceptions_enable=False,
)
for command in (serve, generate, chat, plan, run_batch, train, doctor, convert):
    app.command(cls=HelpfulCommand)(command)
app.add_typer(bench.app, name="bench")


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"nsa-serve {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Say which.")
    ] = False,
) -> None:
    pass

"""`nsa-serve doctor`: what this machine can run, and why not."""

import sys
import textwrap
from shutil import get_terminal_size
from typing import Annotated

import msgspec
import typer

from nsa_serve.cli.checks import Finding, Status, check_all

_INDENT = 22
_LOOKS: dict[Status, tuple[str, str]] = {
    "ok": ("ok", typer.colors.GREEN),
    "warning": ("note", typer.colors.YELLOW),
    "failure": ("fail", typer.colors.RED),
}


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Say what this machine can run, and why not.

    The exit status is 1 if nothing can run.
    """
    findings = check_all()
    if as_json:
        print(msgspec.json.encode(findings).decode())
    else:
        for finding in findings:
            _print(finding)
    if any(finding.status == "failure" for finding in findings):
        raise typer.Exit(1)


def _print(finding: Finding) -> None:
    word, color = _LOOKS[finding.status]
    # A long line is only broken where one looks at it: what reads it from a pipe wants it whole.
    room = get_terminal_size().columns - _INDENT if sys.stdout.isatty() else sys.maxsize
    detail = textwrap.wrap(
        finding.detail, max(room, 20), break_long_words=False, break_on_hyphens=False
    ) or [""]
    typer.echo(typer.style(f"{word:4}  {finding.name:14}  ", fg=color) + detail[0])
    for line in [*detail[1:], *([f"→ {finding.advice}"] if finding.advice else [])]:
        typer.echo(" " * _INDENT + line)

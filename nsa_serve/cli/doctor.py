"""`nsa-serve doctor`: what this machine can run, and why not."""

from typing import Annotated

import msgspec
import typer

from nsa_serve.cli.checks import Finding, Status, check_all

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
    typer.echo(typer.style(f"{word:4}  {finding.name:14}  ", fg=color) + finding.detail)
    if finding.advice:
        typer.echo(f"{'':22}→ {finding.advice}")

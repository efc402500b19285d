"""The entry point `nsa-serve`: how a command line ends."""

import sys

from nsa_serve.errors import NsaServeError


def main(arguments: list[str] | None = None) -> None:
    """Run a command line and exit: 0, 1 after one line `error: …`, 2 if the command line itself
    is wrong, 130 after Ctrl-C."""
    try:
        from nsa_serve.cli.app import app  # here, because Ctrl-C may come while it is imported

        app(arguments, prog_name="nsa-serve")
    except NsaServeError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)

"""A server of our own, for what measures it from outside."""

import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

COMMAND = [sys.executable, "-c", "from nsa_serve.cli.main import main; main()"]
"""`nsa-serve`, installed or not."""


@contextmanager
def serve(arguments: Sequence[str]) -> Iterator[str]:
    """The address of a server with these arguments of `nsa-serve serve`, until we leave."""
    command = [*COMMAND, "serve", "--port", "0", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            found = (re.search(r"ready at (http://\S+)", line) for line in process.stdout)
            match = next(filter(None, found), None)
            if match is None:
                raise SystemExit("the server did not start")
            yield match[1]
        finally:
            process.terminate()

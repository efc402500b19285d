"""Where the threads of an engine process stand, when another process asks by a signal.

The process writes to an unnamed file that both have open; it need not run Python for that.
"""

import faulthandler
import os
import signal
import tempfile
from pathlib import Path

SIGNAL = signal.SIGUSR1
_MAX_BYTES = 64 * 2**10


class StackFile:
    """The asking side."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process
        self._num_read = 0

    def fileno(self) -> int:
        """For the process to inherit."""
        return self._file.fileno()

    def read(self) -> str:
        """What was written since the last call; the first 64 KiB of it."""
        data = os.pread(self.fileno(), _MAX_BYTES, self._num_read)
        self._num_read = os.fstat(self.fileno()).st_size
        return data.decode(errors="replace").strip()

    def close(self) -> None:
        """Give the file back."""
        self._file.close()


def answer_with_stacks(fd: int) -> None:
    """In the engine process: from now on a `SIGNAL` writes all stacks to `fd`."""
    faulthandler.register(SIGNAL, file=fd, all_threads=True)


def process_state(pid: int) -> str:
    """The system's word for what a process does: running, sleeping, stopped …; gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return "gone"
    state = next(line for line in status.splitlines() if line.startswith("State:"))
    return state.partition("(")[2].rstrip(")")

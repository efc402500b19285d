"""Runs of a batch that are killed at random moments: a process forks them, without threads."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec

_MOST = 20_000
"""Bytes by which the output grows between kills, at most."""


def killed_runs(source: Path, target: Path, num_kills: int) -> list[int]:
    """Sizes of the output after each kill; every line it held then was whole."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.batch_kills", source, target, str(num_kills)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        check=True,
    )
    return msgspec.json.decode(done.stdout, type=list[int])


def _kill_one(source: Path, target: Path, growth: int) -> int:
    """Killed once the output is longer by `growth` bytes, or a moment later."""
    from tests.support.batches import KnownEngine, run

    if not (pid := os.fork()):
        status = 1
        try:
            run(source, target, KnownEngine(0.02), resume=True)
            status = 0
        finally:
            os._exit(status)
    enough, status = _size(target) + growth, -1
    while status < 0 and _size(target) < enough:
        time.sleep(0.002)
        ended, found = os.waitpid(pid, os.WNOHANG)
        status = found if ended else -1
    if status < 0:
        time.sleep(random.uniform(0.0, 0.02))
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
    assert status in (0, signal.SIGKILL), status
    written = target.read_bytes() if target.exists() else b""
    for text in written.split(b"\n")[:-1]:
        msgspec.json.decode(text)
    return len(written)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def main() -> None:
    """Source, target and number of kills as arguments; the sizes as JSON on standard output."""
    source, target = map(Path, sys.argv[1:3])
    sizes = [_kill_one(source, target, random.randrange(_MOST)) for _ in range(int(sys.argv[3]))]
    print(msgspec.json.encode(sizes).decode())


if __name__ == "__main__":
    main()

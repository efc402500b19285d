"""How much memory a process takes."""

from pathlib import Path


def resident(pid: int | str = "self") -> int:
    """Bytes of a process in memory, without the pages of files."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (kib,) = (line.split()[1] for line in lines if line.startswith("RssAnon:"))
    return int(kib) * 1024

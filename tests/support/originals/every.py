"""A small checkpoint with random weights of every family that loads."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.model_folders import write_tiny_folder
from tests.support.originals import fla, llama_nsa, nsa_vibe, xunhao
from tests.support.originals.lucidrains import PHIS, SIZES, Original

WRITERS: dict[str, Callable[[Path], Any]] = {
    "ours": write_tiny_folder,
    "fla": lambda folder: fla.write_random(folder, fla.SIZES["biased"]),
    "llama_nsa": llama_nsa.write_random,
    "xunhao": xunhao.write_random,
    "fsa": lambda folder: xunhao.write_random(folder, one_gate=True),
    "nsa_vibe": nsa_vibe.write_random,
    "lucidrains": lambda folder: Original(PHIS["conv"], **SIZES["overlapping"]).write(folder),
}
"""By family, what writes one into a folder."""

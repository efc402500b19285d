"""nsa-serve: an inference serving engine for models with Native Sparse Attention."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from nsa_serve.config import EngineConfig, ModelConfig, NSAConfig, RopeScaling
from nsa_serve.errors import NsaServeError
from nsa_serve.outputs import CompletionOutput, RequestOutput
from nsa_serve.params import SamplingParams

if TYPE_CHECKING:
    from nsa_serve.engine.client import AsyncEngine
    from nsa_serve.engine.llm import LLM

__all__ = [
    "LLM",
    "AsyncEngine",
    "CompletionOutput",
    "EngineConfig",
    "ModelConfig",
    "NSAConfig",
    "NsaServeError",
    "RequestOutput",
    "RopeScaling",
    "SamplingParams",
]
__version__ = "0.1.0"

_LAZY = {"LLM": "nsa_serve.engine.llm", "AsyncEngine": "nsa_serve.engine.client"}


def __getattr__(name: str) -> Any:
    """Import what needs torch only when it is asked for: the HTTP process never does."""
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'nsa_serve' has no attribute {name!r}")

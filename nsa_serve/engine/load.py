"""What an engine is made of: the runner on one side of the socket, the text on the other."""

from nsa_serve.config import EngineConfig
from nsa_serve.engine.compile_ahead import start_early
from nsa_serve.engine.runner import Runner
from nsa_serve.model.loading.generation import GenerationDefaults
from nsa_serve.model.shapes import find_model, is_random
from nsa_serve.text.byte_level import byte_level_backend
from nsa_serve.text.tokenizer import Tokenizer


def load_runner(config: EngineConfig) -> Runner:
    """Load what computes tokens. Imports torch, unless it is the stand-in."""
    if config.runner == "stand-in":
        from nsa_serve.engine.stand_in import StandInRunner

        return StandInRunner(config)
    compiling = start_early(config)
    from nsa_serve.engine.load_model import load_model_runner

    return load_model_runner(config, compiling)


def load_text(config: EngineConfig) -> tuple[Tokenizer, GenerationDefaults]:
    """Load the tokenizer and the model's sampling defaults. Imports no torch."""
    if config.runner == "stand-in":
        return Tokenizer.byte_level(), GenerationDefaults()
    folder = find_model(config.model)
    if is_random(config.model):
        return Tokenizer.byte_level(), folder.generation
    if not folder.has_tokenizer:
        return Tokenizer.bytes_only(), folder.generation
    return Tokenizer.from_folder(folder.path), folder.generation


def load_tokenizer_json(config: EngineConfig) -> str | None:
    """The text of the model's tokenizer.json; None if it has no tokenizer but bytes."""
    if config.runner == "stand-in":
        return byte_level_backend().to_str()
    folder = find_model(config.model)
    if is_random(config.model):
        return byte_level_backend().to_str()
    if not folder.has_tokenizer:
        return None
    return (folder.path / "tokenizer.json").read_text(encoding="utf-8")

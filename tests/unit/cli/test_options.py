"""Flags become configuration, and a bad one is told before anything is loaded."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from nsa_api import server
from nsa_serve.cli import chat, generate
from nsa_serve.config import EngineConfig
from tests.support.command_line import run_here

VALUES = {
    "attention": "dense",
    "dtype": "float16",
    "device": "cuda:1",
    "max_model_len": 100,
    "max_num_seqs": 3,
    "max_num_batched_tokens": 64,
    "block_size": 128,
    "num_pages": 9,
    "gpu_memory_utilization": 0.5,
    "cpu_cache_gib": 0.25,
    "dense_backend": "sdpa",
    "enable_prefix_caching": False,
    "scheduling_policy": "priority",
    "max_num_queued_reqs": 7,
    "num_threads": 2,
    "enforce_eager": True,
    "runner": "stand-in",
}
COMMANDS = {"serve": ["serve"], "chat": ["chat"], "generate": ["generate", "prompt"]}


class ReachedError(Exception):
    """Raised in place of the command's work."""


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[EngineConfig, Any]]:
    """Runs a command line up to its work; the configuration, and what else went with it."""
    seen: list[tuple[EngineConfig, Any]] = []

    def reach(config: EngineConfig, other: Any) -> None:
        seen.append((config, other))
        raise ReachedError

    monkeypatch.setattr(server, "serve", reach)
    monkeypatch.setattr(generate, "open_session", reach)
    monkeypatch.setattr(chat, "open_session", reach)

    def run(*arguments: str) -> tuple[EngineConfig, Any]:
        with pytest.raises(ReachedError):
            run_here(*arguments)
        return seen[-1]

    return run


def _flag(name: str) -> list[str]:
    dashed = name.replace("_", "-")
    value = VALUES[name]
    if isinstance(value, bool):
        return [f"--{dashed}" if value else f"--no-{dashed}"]
    return [f"--{dashed}", str(value)]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("field", [f for f in EngineConfig.__struct_fields__ if f != "model"])
def test_every_field_has_a_flag(
    given: Callable[..., tuple[EngineConfig, Any]], command: str, field: str
) -> None:
    config, _ = given(*COMMANDS[command], *_flag(field))
    assert getattr(config, field) == VALUES[field]


def test_without_flags_the_engines_defaults_hold(
    given: Callable[..., tuple[EngineConfig, Any]],
) -> None:
    assert given("serve")[0] == EngineConfig()


@pytest.mark.parametrize("command", [["chat"], ["generate", "prompt"]])
def test_one_conversation_takes_the_cache_of_one_sequence(
    given: Callable[..., tuple[EngineConfig, Any]], command: list[str]
) -> None:
    assert given(*command)[0] == EngineConfig(max_num_seqs=1)


@pytest.mark.parametrize(
    "command", [["serve", "folder"], ["chat", "folder"], ["generate", "hi", "--model", "folder"]]
)
def test_the_model_is_named(
    given: Callable[..., tuple[EngineConfig, Any]], command: list[str]
) -> None:
    assert given(*command)[0].model == "folder"


@pytest.mark.parametrize("command", [["chat"], ["generate", "prompt"]])
def test_only_given_sampling_flags_stand_above_the_models_defaults(
    given: Callable[..., tuple[EngineConfig, Any]], command: list[str]
) -> None:
    assert given(*command)[1] == {"max_tokens": None, "stop": ()}
    flags = ["--max-tokens", "5", "--temperature", "0", "--top-p", "0.5", "--top-k", "4"]
    _, sampling = given(*command, *flags, "--seed", "1", "--stop", "a", "--stop", "b")
    assert sampling == {
        "max_tokens": 5,
        "temperature": 0.0,
        "top_p": 0.5,
        "top_k": 4,
        "seed": 1,
        "stop": ("a", "b"),
    }


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        (["serve", "--max-num-seqs", "0"], "max_num_seqs must be at least 1"),
        (["serve", "--port", "x"], "--port"),
        (["chat", "--dtype", "int3"], "--dtype"),
        (["chat", "--top-p", "1.5"], "top_p must be between"),
        (["generate", "hi", "--stop", ""], "stop strings must not be empty"),
        (["generate", "hi", "--bogus"], "--bogus"),
        (["sevre"], "sevre"),
    ],
)
def test_a_bad_command_line_exits_2_and_says_why(
    arguments: list[str], cause: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_here(*arguments) == 2
    assert cause in capsys.readouterr().err


def test_http_flags_become_settings(
    given: Callable[..., tuple[EngineConfig, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NSA_SERVE_API_KEY", raising=False)
    _, settings = given(
        *["serve", "--host", "::1", "--port", "1", "--api-key", "a", "--api-key", "b"],
        *["--served-model-name", "m", "--allowed-host", "h", "--shutdown-timeout", "2.5"],
    )
    assert (
        msgspec.structs.asdict(settings).items()
        >= {
            "host": "::1",
            "port": 1,
            "api_keys": ("a", "b"),
            "served_model_names": ("m",),
            "allowed_hosts": ("h",),
            "shutdown_timeout": 2.5,
        }.items()
    )


def test_the_environment_gives_a_key_that_a_flag_replaces(
    given: Callable[..., tuple[EngineConfig, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NSA_SERVE_API_KEY", "secret")
    assert given("serve")[1].api_keys == ("secret",)
    assert given("serve", "--api-key", "other")[1].api_keys == ("other",)


def test_help_does_not_show_a_key(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NSA_SERVE_API_KEY", "open-sesame")
    assert run_here("serve", "--help") == 0
    shown = capsys.readouterr().out
    assert "open-sesame" not in shown
    assert "--gpu-memory-utilization" in shown
    assert "--runner" not in shown

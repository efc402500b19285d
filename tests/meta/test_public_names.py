"""What users may import; a change here is a change for them."""

from importlib import import_module

import pytest

PUBLIC = {
    "nsa_serve": [
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
    ],
    "nsa_scheduler": [
        "EndReason",
        "NeverFits",
        "PolicyName",
        "QueueFull",
        "ScheduledBatch",
        "ScheduledSequence",
        "Scheduler",
        "SchedulerConfig",
        "SchedulerStats",
        "Sequence",
        "SequenceState",
        "StepUpdate",
    ],
    "nsa_kernels": [],
    "nsa_api": [],
}


@pytest.mark.parametrize("package", PUBLIC)
def test_public_names_are_these(package: str) -> None:
    assert getattr(import_module(package), "__all__", []) == PUBLIC[package]


@pytest.mark.parametrize(
    ("package", "name"), [(package, name) for package, names in PUBLIC.items() for name in names]
)
def test_every_public_name_is_there_and_told_about(package: str, name: str) -> None:
    value = getattr(import_module(package), name)
    assert not isinstance(value, type) or value.__doc__


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'LLN'"):
        import_module("nsa_serve").LLN  # noqa: B018


def test_commands_are_these() -> None:
    app = import_module("nsa_serve.cli.app").app
    assert [command.callback.__name__ for command in app.registered_commands] == [
        "serve",
        "generate",
        "chat",
        "plan",
        "run_batch",
        "train",
        "doctor",
        "convert",
    ]

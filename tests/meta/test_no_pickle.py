"""Nothing that can run code from data is imported anywhere in the product."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ["nsa_serve", "kernels/nsa_kernels", "scheduler/nsa_scheduler", "api/nsa_api"]
FORBIDDEN = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"}
FORBIDDEN |= {"multiprocessing"}  # its queues and pipes pickle


def _imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def _torch_loads(tree: ast.AST) -> Iterator[int]:
    """Lines that name torch.load and do not call it with weights_only=True, which refuses every
    object that is no tensor."""
    safe = {
        id(node.func)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords)
    }
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Attribute)
            and ast.unparse(node) == "torch.load"
            and id(node) not in safe
        ):
            yield node.lineno


@pytest.mark.parametrize("package", PACKAGES)
def test_no_module_can_unpickle(package: str) -> None:
    paths = sorted((ROOT / package).rglob("*.py"))
    assert paths
    for path in paths:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {name.partition(".")[0] for name in _imported(tree)}
        assert not names & FORBIDDEN, path
        assert not list(_torch_loads(tree)), path

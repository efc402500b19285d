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
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.load":
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

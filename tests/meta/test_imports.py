"""Imports go one way: nsa_api → nsa_serve → {nsa_scheduler, nsa_kernels}."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = {
    "nsa_serve": ROOT / "nsa_serve",
    "nsa_kernels": ROOT / "kernels" / "nsa_kernels",
    "nsa_scheduler": ROOT / "scheduler" / "nsa_scheduler",
    "nsa_api": ROOT / "api" / "nsa_api",
}
ALLOWED = {
    "nsa_api": {"nsa_api", "nsa_serve"},
    "nsa_serve": {"nsa_serve", "nsa_scheduler", "nsa_kernels"},
    "nsa_scheduler": {"nsa_scheduler"},
    "nsa_kernels": {"nsa_kernels"},
}
COMPOSITION_ROOT = ROOT / "nsa_serve" / "cli"
"""The command line puts the API and the engine together."""
NO_TORCH = ["nsa_serve", "nsa_serve.cli.app", "nsa_api.app", "nsa_api.server", "nsa_scheduler"]


def _imports(path: Path) -> Iterator[str]:
    """Top-level packages that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield (node.module or "").partition(".")[0]


def _files(package: str) -> list[Path]:
    files = sorted(FOLDERS[package].rglob("*.py"))
    assert files
    return files


@pytest.mark.parametrize("package", FOLDERS)
def test_packages_import_only_what_lies_below(package: str) -> None:
    for path in _files(package):
        allowed = ALLOWED[package]
        if path.is_relative_to(COMPOSITION_ROOT):
            allowed = allowed | {"nsa_api"}
        ours = {name for name in _imports(path) if name in FOLDERS}
        assert ours <= allowed, path


@pytest.mark.parametrize("package", FOLDERS)
def test_no_package_imports_the_tests(package: str) -> None:
    assert not [path for path in _files(package) if "tests" in _imports(path)]


def test_the_scheduler_needs_nothing_but_python() -> None:
    for path in _files("nsa_scheduler"):
        foreign = {name for name in _imports(path) if name not in sys.stdlib_module_names}
        assert foreign <= {"nsa_scheduler"}, path


def test_only_the_command_line_imports_the_command_line() -> None:
    for package in FOLDERS:
        for path in _files(package):
            if not path.is_relative_to(COMPOSITION_ROOT):
                assert "nsa_serve.cli" not in path.read_text(encoding="utf-8"), path


@pytest.mark.parametrize("module", NO_TORCH)
def test_what_serves_http_loads_no_torch(module: str) -> None:
    program = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_the_command_line_loads_the_api_only_to_serve() -> None:
    program = "import sys, nsa_serve.cli.app; sys.exit('nsa_api' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0

"""The documentation can be followed: links lead somewhere, command lines parse, code is code, and
the README's figures are those that were measured."""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from nsa_serve.cli.app import app

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
LINK = re.compile(r"!?\[[^\[\]]*(?:!\[[^\]]*\]\([^)]*\))?[^\[\]]*\]\(([^)\s]+)\)")
PLACEHOLDERS = {"…", "[MODEL]"}


def _prose(page: Path) -> str:
    """Without code: a link in code is no link."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`", "", text)


def _anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    kept = (re.sub(r"[^\w\- ]", "", head.lower()) for head in heads)
    return {head.replace(" ", "-") for head in kept}


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_and_pictures_are_there(page: Path) -> None:
    text = _prose(page)
    targets = LINK.findall(text) + re.findall(r"!\[[^\]]*\]\(([^)\s]+)\)", text)
    for target in targets:
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), target
        assert found.is_relative_to(ROOT), target
        if anchor:
            assert anchor in _anchors(found), target


def test_every_page_and_picture_is_linked_from_somewhere() -> None:
    linked = {
        (page.parent / target.partition("#")[0]).resolve()
        for page in PAGES
        for target in re.findall(r"\]\(([^)\s]+)\)", _prose(page))
    }
    there = {*(ROOT / "docs").glob("**/*.md"), *(ROOT / "docs" / "images").iterdir()}
    assert {str(path.relative_to(ROOT)) for path in there - linked} == set()


def _blocks(page: Path) -> Iterator[tuple[str, str]]:
    """Code, fenced (with its language) or indented."""
    text = page.read_text()
    for language, code in re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        yield language, code
    unfenced = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    for code in re.findall(r"(?:(?<=\n\n)|(?<=\n))((?:    .*\n)+)", unfenced):
        yield "", code


def _command_lines() -> Iterator[tuple[str, list[str]]]:
    for page, name in zip(PAGES, NAMES, strict=True):
        for language, code in _blocks(page):
            if language not in ("", "sh"):
                continue
            for line in code.replace("\\\n", " ").splitlines():
                if re.match(r"\s*(\S*/)?nsa-serve\s", line):
                    yield name, shlex.split(line, comments=True)[1:]


COMMAND_LINES = list(_command_lines())


@pytest.mark.parametrize(
    ("page", "words"), COMMAND_LINES, ids=[" ".join([p, *w])[:90] for p, w in COMMAND_LINES]
)
def test_command_lines_parse(page: str, words: list[str]) -> None:
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands"):
        assert words[0] in command.commands, page
        command = command.commands[words[0]]
        words = words[1:]
    given = [word for word in words if word not in PLACEHOLDERS]
    if "--config" not in given:  # which reads its file at once
        command.make_context("documented", given)


def test_there_are_command_lines() -> None:
    assert len({page for page, _ in COMMAND_LINES}) > 5


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_code_is_code(page: Path) -> None:
    for language, code in _blocks(page):
        if language == "python":
            compile(code, str(page), "exec")


def _rows(text: str, first: str) -> dict[str, list[str]]:
    """The table whose head begins with `first`: cells by the name of their row."""
    lines = text[text.index(first) :].split("\n\n")[0].splitlines()
    cells = [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in lines[2:]]
    return {row[0]: row[1:] for row in cells}


def _agree(shown: list[str], measured: list[float]) -> None:
    """Each figure is the measured one, rounded as it is shown."""
    assert len(shown) == len(measured)
    for text, value in zip(shown, measured, strict=True):
        places = len(text.partition(".")[2])
        assert abs(float(text.replace(",", "")) - value) <= 0.5 * 10**-places + 1e-9, (text, value)


def _result(name: str) -> Any:
    return json.loads((RESULTS / name).read_text())


README = (ROOT / "README.md").read_text()


def test_perplexity_is_what_was_measured() -> None:
    measured = _result("perplexity.json")["perplexity"]
    names = ["dense float32", "nsa float32", "nsa int8"]
    keys = ["tokens 1-1023", "tokens 1024-2047", "tokens 2048-4095"]
    rows = _rows(README, "| tokens | dense, float32 |")
    for cells, key in zip(rows.values(), keys, strict=True):
        _agree(cells, [measured[name][key] for name in names])


@pytest.mark.parametrize("page", ["README.md", "docs/cpu.md"])
def test_the_cpu_is_as_fast_as_was_measured(page: str) -> None:
    measured = _result("cpu.json")
    rows = _rows((ROOT / page).read_text(), "| | decode, batch 1 |")
    speeds = ["decode_batch_1", "decode_batch_8", "prefill_512", "prefill_1000"]
    for shown, name in (
        ("nsa-serve, int8 weights (default)", "nsa-serve int8"),
        ("nsa-serve, bfloat16", "nsa-serve bfloat16"),
        ("transformers, bfloat16", "transformers bfloat16"),
        ("transformers, float32", "transformers float32"),
    ):
        _agree(rows[shown], [measured["medians"][name][key] for key in [*speeds, "peak_mib"]])
    ratios = next(cells for name, cells in rows.items() if "÷" in name)
    _agree(ratios[:4], [measured["ratios"][key] for key in speeds])


def test_the_gpu_is_as_fast_as_was_measured() -> None:
    (layer,) = _result("gpu-kernels.json")["layers"]
    rows = _rows(README, "| decode, µs |")
    sizes = [(batch, context) for batch in (1, 8, 32) for context in (8192, 65_536)]
    points = {(p["batch"], p["context"]): p for p in layer["decode"]}
    dense, nsa = rows.values()
    _agree(nsa, [points[size]["nsa"]["us"] for size in sizes])
    _agree(dense, [_fastest(points[size]) for size in sizes])

    rows = _rows(README, "| prefill, ms |")
    prompts = {p["context"]: p for p in layer["prefill"]}
    chosen = [prompts[context] for context in (8192, 32_768, 65_536, 131_072)]
    dense, alike, apart = rows.values()
    _agree(dense, [point["dense"]["fa3"]["us"] / 1000 for point in chosen])
    _agree(alike, [point["neighbours"]["us"] / 1000 for point in chosen])
    _agree(apart, [point["nsa"]["us"] / 1000 for point in chosen])


def _fastest(point: dict[str, Any]) -> float:
    return float(min(side["us"] for side in point["dense"].values() if not side["skipped"]))


def _steps(name: str) -> dict[tuple[int, int], float]:
    """Median decode steps in ms, by batch and prompt."""
    points = [point for point in _result(name)["latency"] if not point["skipped"]]
    return {(point["batch"], point["input_len"]): point["step"]["p50"] for point in points}


def test_whole_models_are_as_fast_as_was_measured() -> None:
    sizes = [(1, 1000), (1, 8000), (1, 64_000), (8, 32_000), (32, 8000), (32, 32_000)]
    rows = _rows(README, "| decode step, ms |")
    for cells, name in zip(rows.values(), ("-dense", ""), strict=True):
        steps = _steps(f"gpu-engine{name}-1b.json")
        _agree(cells, [steps[size] for size in sizes])

    rows = _rows(README, "| prompt, tokens |")
    runs = {(run["model"], run["output_len"]): run for run in _result("serving.json")}
    shown = [(length, side) for length in (128, 1024) for side in ("dense", "nsa")]
    for cells, (length, side) in zip(rows.values(), shown, strict=True):
        points = runs["random:1b", length]["sides"][side]
        _agree(cells, [point["output_throughput"] for point in points])

    nsa, dense = (
        _result(f"gpu-engine{kind}-1b-many.json")["throughput"] for kind in ("", "-dense")
    )
    faster = re.search(r"dense attention is (\d+) % faster", README)
    assert faster
    _agree([faster[1]], [100 * (nsa["seconds"] / dense["seconds"] - 1)])

"""The built-in page in a real browser, over a tiny model behind a real server process."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.support.http_server import ServerProcess, run_server, wait_until
from tests.support.model_folder import write_sharp_folder
from tests.support.model_folders import TINY

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

LENGTH = 4096
LONG = "Blocks, and blocks of blocks. " * 6
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        path = next(filter(None, map(shutil.which, NAMES)), started.chromium.executable_path)
        if not Path(path).exists():
            pytest.skip("no Chromium on this machine")
        # Its own sandbox cannot be had by root, as which containers run tests.
        browser = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    config = msgspec.structs.replace(TINY, max_position_embeddings=LENGTH)
    folder, _ = write_sharp_folder(tmp_path_factory.mktemp("page") / "tiny", config)
    return {
        "runner": "model",
        "model": str(folder),
        "device": "cpu",
        "num_threads": 1,
        "block_size": 8,
        "num_pages": LENGTH // 4,
    }


@pytest.fixture(scope="module")
def server(browser: Any, engine: dict[str, Any]) -> Iterator[ServerProcess]:
    with run_server(engine=engine) as server:
        yield server


class Seen:
    """What a page said on its console, and the selections that it got."""

    def __init__(self, page: Any) -> None:
        self.errors: list[str] = []
        self.selections: list[dict[str, Any]] = []
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", self._on_console)
        page.on("requestfinished", self._on_finished)

    def _on_console(self, message: Any) -> None:
        # A look at a request that has just ended is a 404, which Chromium notes.
        if message.type == "error" and "selection" not in str(message.location):
            self.errors.append(message.text)

    def _on_finished(self, request: Any) -> None:
        if request.url.endswith("/selection") and request.response().status == 200:
            self.selections.append(request.response().json())


@pytest.fixture
def page(browser: Any, server: ServerProcess) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1300, "height": 900})
    page = context.new_page()
    seen = Seen(page)
    page.seen = seen
    page.goto(server.url)
    expect(page.locator("#state")).to_have_text("ready")
    yield page
    context.close()
    assert seen.errors == []


def expect(locator: Any) -> Any:
    return playwright.expect(locator)


def ask(page: Any, text: str, *, max_tokens: int, system: str = "") -> None:
    """Fill the form in and send it by the keyboard, greedily."""
    page.get_by_text("Settings").click()
    page.get_by_label("Temperature").fill("0")
    page.get_by_label("Max tokens").fill(str(max_tokens))
    page.get_by_label("System prompt").fill(system)
    page.get_by_text("Settings").click()
    page.get_by_label("Message", exact=True).fill(text)
    page.keyboard.press("Enter")


def figures(page: Any) -> str:
    text: str = page.locator(".message.assistant .figures").last.inner_text()
    return text


def wait_for_end(page: Any) -> None:
    expect(page.locator(".message.assistant.busy")).to_have_count(0, timeout=60_000)


def colors(page: Any) -> dict[str, list[int]]:
    """The picture's colours by name, as red, green and blue."""
    script = """names => Object.fromEntries(names.map(name => {
        const context = new OffscreenCanvas(1, 1).getContext("2d");
        const style = getComputedStyle(document.documentElement);
        context.fillStyle = style.getPropertyValue("--" + name);
        context.fillRect(0, 0, 1, 1);
        return [name, [...context.getImageData(0, 0, 1, 1).data.slice(0, 3)]];
    }))"""
    found: dict[str, list[int]] = page.evaluate(script, ["forced", "chosen", "unread"])
    return found


def pixels(page: Any, num_layers: int, num_blocks: int) -> list[list[list[int]]]:
    """The colour in the middle of each cell of the heat map, by layer and block."""
    script = """([layers, blocks]) => {
        const canvas = document.getElementById("heatmap");
        const context = canvas.getContext("2d");
        const gates = canvas.clientWidth < 420 ? 76 : 116;
        const step = (canvas.clientWidth - 30 - gates - 14) / blocks;
        const height = Math.max(7, Math.min(18, Math.floor(330 / layers)));
        return Array.from({length: layers}, (_, row) => Array.from({length: blocks}, (_, block) =>
            [...context.getImageData(30 + (block + .45) * step, 4 + (row + .4) * height, 1, 1)
                .data.slice(0, 3)]));
    }"""
    found: list[list[list[int]]] = page.evaluate(script, [num_layers, num_blocks])
    return found


def num_aborted(server: ServerProcess) -> float:
    text = server.http.get("/metrics").text
    match = re.search(r'request_success_total\{[^}]*"abort"[^}]*\} (\S+)', text)
    assert match
    return float(match[1])


def test_an_answer_streams_with_its_figures(page: Any, server: ServerProcess) -> None:
    ask(page, "Hello", max_tokens=30, system="Be brief.")
    wait_for_end(page)
    assert re.fullmatch(r"TTFT .* · .* tokens/s · 30 tokens · prompt \d+.*", figures(page))
    assert page.locator(".message.assistant .text").inner_text().strip()
    ask(page, "And again", max_tokens=5, system="Be brief.")
    wait_for_end(page)
    assert page.locator(".message").count() == 4
    assert "of them cached" in figures(page), "the conversation was sent, and found in the cache"


def test_stop_ends_the_request_on_the_server(page: Any, server: ServerProcess) -> None:
    aborted = num_aborted(server)
    ask(page, "Go on for ever", max_tokens=3000)
    expect(page.locator(".message.assistant .figures")).to_contain_text("tokens/s")
    page.get_by_role("button", name="Stop").click()
    wait_for_end(page)
    assert "stopped" in figures(page)
    wait_until(lambda: server.metric("num_requests_running") == 0, timeout=20)
    assert num_aborted(server) == aborted + 1
    expect(page.get_by_role("button", name="Send")).to_be_enabled()


def test_answers_match_a_schema(page: Any, server: ServerProcess) -> None:
    page.get_by_text("Settings").click()
    page.locator("#format").select_option("json_schema")
    schema = page.get_by_label("JSON schema")
    schema.fill("{no")
    page.get_by_text("Settings").click()
    page.get_by_label("Message", exact=True).fill("Which?")
    page.keyboard.press("Enter")
    expect(schema).to_be_visible()
    assert page.locator(".message").count() == 0, "what is no JSON is not sent"
    schema.fill('{"enum": ["left", "right"]}')
    page.get_by_label("Message", exact=True).focus()
    page.keyboard.press("Enter")
    wait_for_end(page)
    assert page.locator(".message.assistant .text").inner_text() in ('"left"', '"right"')


def test_a_server_that_goes_is_told_and_the_question_kept(
    browser: Any, engine: dict[str, Any]
) -> None:
    context = browser.new_context()
    page = context.new_page()
    with run_server(engine=engine) as server:
        page.goto(server.url)
        expect(page.locator("#state")).to_have_text("ready")
        ask(page, "Go on for ever", max_tokens=3000)
        expect(page.locator(".message.assistant .figures")).to_contain_text("tokens/s")
        server.process.kill()
        wait_for_end(page)
        assert figures(page).endswith("The connection to the server broke.")
        expect(page.locator("#state")).to_have_text("no connection")
        page.get_by_label("Message", exact=True).fill("Are you there?")
        page.keyboard.press("Enter")
        wait_for_end(page)
    assert figures(page) == "The server does not answer."
    expect(page.get_by_label("Message", exact=True)).to_have_value("Are you there?")
    expect(page.locator("#selection-summary")).not_to_contain_text("being computed")
    context.close()


def test_requests_and_rates_are_live(page: Any, server: ServerProcess) -> None:
    tile = page.locator(".tile", has_text="Tokens/s generated")
    ask(page, "Go on for a while", max_tokens=3000)
    row = page.locator("#requests tr")
    expect(row.locator(".stage")).to_have_text("decode", timeout=20_000)
    expect(tile.locator("b")).not_to_have_text("0.0")
    assert tile.locator("path.line").get_attribute("d")
    page.get_by_role("button", name="Stop").click()
    expect(row).to_have_count(0, timeout=20_000)
    expect(page.locator("#idle")).to_be_visible()


def test_heat_map_shows_what_was_selected(page: Any) -> None:
    ask(page, LONG, max_tokens=200)
    expect(page.locator("#pictures")).to_be_visible(timeout=30_000)
    wait_for_end(page)
    expect(page.locator("#selection-summary")).to_contain_text("has ended", timeout=20_000)
    look = next(each for each in reversed(page.seen.selections) if each["available"])
    blocks, forced = look["num_blocks"], look["forced_block_ids"]
    assert forced == [0, blocks - 2, blocks - 1]
    assert f"reads 4 of {blocks} blocks" in page.locator("#selection-summary").inner_text()
    names = colors(page)
    drawn = pixels(page, len(look["layers"]), blocks)
    for layer, row in zip(look["layers"], drawn, strict=True):
        heads = layer["selected_block_ids"]
        for block, color in enumerate(row):
            readers = sum(block in ids for ids in heads)
            if block in forced:
                assert color == names["forced"]
            elif readers == len(heads):
                assert color == names["chosen"]
            else:
                assert (color == names["unread"]) == (readers == 0)


def test_heat_map_works_by_keyboard(page: Any) -> None:
    ask(page, LONG, max_tokens=100)
    expect(page.locator("#pictures")).to_be_visible(timeout=30_000)
    wait_for_end(page)
    page.locator("#heatmap").focus()
    cell = page.locator("#cell")
    expect(cell).to_contain_text("Layer 0, block 0 (tokens 0–3): always read.")
    page.keyboard.press("ArrowDown")
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    expect(cell).to_contain_text("Layer 1, block 5 (tokens 20–23)")
    assert re.search(
        r"Gates: compressed 0\.\d\d, selected 0\.\d\d, window 0\.\d\d", cell.inner_text()
    )
    expect(cell.locator("q")).not_to_be_empty()
    page.get_by_label("kv head").select_option("1")
    assert "block 5" in cell.inner_text()


def test_key_is_asked_for_and_kept_in_memory_only(browser: Any, engine: dict[str, Any]) -> None:
    with run_server(engine=engine, settings={"api_keys": ["right-key"]}) as server:
        context = browser.new_context()
        page = context.new_page()
        page.goto(server.url)
        dialog = page.get_by_role("dialog")
        expect(dialog).to_be_visible()
        for key in ("wrong-key", "right-key"):
            page.get_by_role("textbox", name="API key").fill(key)
            page.keyboard.press("Enter")
            if key == "wrong-key":
                expect(page.locator("#key-error")).to_contain_text("does not know")
        expect(dialog).to_be_hidden()
        expect(page.locator("#state")).to_have_text("ready")
        ask(page, "Hello", max_tokens=5)
        wait_for_end(page)
        assert "5 tokens" in figures(page)
        kept = "Object.keys(localStorage).length + Object.keys(sessionStorage).length"
        assert page.evaluate(f"{kept} + document.cookie.length") == 0
        page.reload()
        expect(page.get_by_role("dialog")).to_be_visible()
        context.close()


@pytest.mark.parametrize("width", [360, 700, 1100, 1600])
def test_nothing_is_cut_off_at_any_width(page: Any, width: int) -> None:
    ask(page, LONG, max_tokens=3000)
    expect(page.locator("#pictures")).to_be_visible(timeout=30_000)
    expect(page.locator("#requests tr")).to_have_count(1, timeout=20_000)
    page.set_viewport_size({"width": width, "height": 800})
    overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.evaluate(overflow) == 0
    page.get_by_role("button", name="Stop").click()
    wait_for_end(page)


def test_the_reference_is_a_page_of_its_own(browser: Any, engine: dict[str, Any]) -> None:
    with run_server(engine=engine, settings={"api_keys": ["k"]}) as server:
        context = browser.new_context(viewport={"width": 390, "height": 844})
        page = context.new_page()
        seen = Seen(page)
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"{server.url}/docs")
        page.get_by_role("textbox", name="API key").fill("k")
        page.keyboard.press("Enter")
        chat = page.locator("details", has_text="/v1/chat/completions").first
        chat.locator("summary").click()
        expect(chat).to_contain_text("temperature")
        expect(chat).to_contain_text("number 0 … 100")
        chat.get_by_role("link", name="ChatMessage").first.click()
        expect(page.locator("#ChatMessage")).to_contain_text("role")
        overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert page.evaluate(overflow) == 0
        assert {url.removeprefix(server.url).partition("/")[0] for url in asked} == {""}
        assert [text for text in seen.errors if "401" not in text] == []
        context.close()

"""All that is refused, sent to a real server: each gets its status and code, and the server is as
it was. docs/http.md says the same."""

import re
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest

from tests.support.api import COMPLETIONS
from tests.support.http_server import ROOT, ServerProcess, read_all, run_server, wait_until
from tests.support.openai_client import expected_text
from tests.support.refusals import MAX_MODEL_LEN, READ_TIMEOUT, REFUSALS, Refusal

BEGIN, END = "<!-- refusals -->\n", "<!-- /refusals -->"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    settings = {
        "read_timeout": READ_TIMEOUT,
        "api_keys": ["key"],
        "served_model_names": ["fake"],
        "batch_dir": str(tmp_path_factory.mktemp("batches")),
    }
    engine = {"max_model_len": MAX_MODEL_LEN}
    with run_server(settings=settings, engine=engine) as server:
        server.http.headers["Authorization"] = "Bearer key"
        yield server


def talk(server: ServerProcess, sent: bytes) -> bytes:
    """The whole answer; the server may close before it has read all."""
    with server.connect() as connection:
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(sent)
        return read_all(connection)


def assert_refused(answer: bytes, refusal: Refusal) -> None:
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines[1:])
    assert lines[0].startswith(f"HTTP/1.1 {refusal.status} ")
    error = msgspec.json.decode(body)["error"]
    assert error["code"] == refusal.code
    assert set(error) == {"message", "type", "param", "code"}
    assert len(body) < 2000
    assert headers["content-type"] == "application/json"
    assert headers.items() >= {name: text.lower() for name, text in refusal.headers.items()}.items()


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.what[:60])
def test_each_gets_its_status_and_code(server: ServerProcess, refusal: Refusal) -> None:
    started = time.monotonic()
    for sent in refusal.sent:
        assert_refused(talk(server, sent), refusal)
    assert time.monotonic() - started < 2 * len(refusal.sent)


def num_steps(server: ServerProcess) -> float:
    return server.metric("iteration_tokens_total_count")


def test_none_of_them_did_any_harm(server: ServerProcess) -> None:
    """20 good requests are answered rightly; steps are made, no page is held, nothing is logged."""
    wait_until(lambda: server.http.get("/load").json() == {"server_load": 0}, 5)
    before = num_steps(server)
    assert before == 0  # nothing that was refused came as far as the engine
    for i in range(20):
        body = {"model": "fake", "prompt": f"good {i}", "max_tokens": 5}
        answer = server.http.post(COMPLETIONS, json=body)
        assert answer.status_code == 200
        assert answer.json()["choices"][0]["text"] == expected_text(f"good {i}", 5)
    assert num_steps(server) >= before + 20 * 5
    assert server.metric("kv_cache_usage_perc") == 0
    assert server.metric("num_requests_running") == 0
    assert server.http.get("/health/ready").status_code == 200
    assert server.http.get("/v1/files").json()["data"] == []
    assert "Traceback" not in server.output()
    assert "ERROR" not in server.output()


def test_what_looks_bad_and_is_served(server: ServerProcess) -> None:
    """All tokens biased away, a regex of a billion letters, one request id for two."""
    bias = {str(i): -100 for i in range(259)}
    regex = {"regex": "((a{0,1000}){0,1000}){0,1000}"}
    for fields in ({"logit_bias": bias}, {"structured_outputs": regex}):
        body = {"model": "fake", "prompt": "x", "max_tokens": 5, **fields}
        answer = server.http.post(COMPLETIONS, json=body, headers={"X-Request-Id": "the-same"})
        assert answer.status_code == 200
        assert answer.headers["X-Request-Id"] == "the-same"
        assert answer.json()["choices"][0]["finish_reason"] in ("length", "stop")


def table() -> str:
    """What docs/http.md should say."""
    rows = [f"| {r.status} | `{r.code}` | {r.what} |\n" for r in sorted(REFUSALS, key=_order)]
    return "| status | code | sent |\n|---|---|---|\n" + "".join(rows)


def _order(refusal: Refusal) -> tuple[int, str]:
    return refusal.status, refusal.code


def test_the_documentation_has_the_same_table() -> None:
    page = (ROOT / "docs" / "http.md").read_text()
    assert page.partition(BEGIN)[2].partition(END)[0] == table()


def test_every_code_of_the_server_is_documented() -> None:
    page = (ROOT / "docs" / "http.md").read_text()
    said = set(re.findall(r"`([a-z_]+)`", page))
    sources = [path.read_text() for path in Path(ROOT / "api" / "nsa_api").rglob("*.py")]
    codes = {code for text in sources for code in re.findall(r'\bcode="([a-z_]+)"', text)}
    assert len(codes) > 15
    assert codes <= said

"""Cases that schemathesis draws from the server's own OpenAPI document, over every route.

Its checks: no 5xx; every status, content type, header and body as documented; what the document
forbids is refused, unknown methods and missing keys too. Only that whatever the document allows is
accepted it is not asked to check, as JSON Schema cannot say which fields exclude each other.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from tests.support.http_server import ServerProcess, run_server, wait_until

KEY = {"Authorization": "Bearer key"}
LINES = b"".join(
    b'{"custom_id":"%d","method":"POST","url":"/v1/completions",'
    b'"body":{"model":"stand-in","prompt":"x"}}\n' % i
    for i in range(3)
)
ENDLESS = "/v1/live"
CONFIG = """
[[operations]]
include-path = "/v1/files"
checks.negative_data_rejection.enabled = false
"""
"""In a form, where it knows no difference, an empty list is a field that is not there."""
SOME = ["--phases", "coverage", "--exclude-path", "/v1/chat/completions"]
SOME += ["--exclude-path", "/tokenize", "--generation-deterministic"]
"""Boundaries of every field, in all bodies but those with messages, which are thousands."""
MANY = ["--max-examples", "500", "--generation-database", "none"]


def upload(http: httpx.Client) -> str:
    answer = http.post("/v1/files", data={"purpose": "batch"}, files={"file": LINES})
    file_id: str = answer.json()["id"]
    return file_id


def create_batch(http: httpx.Client, file_id: str) -> str:
    asked = {"input_file_id": file_id, "endpoint": "/v1/completions", "completion_window": "24h"}
    batch_id: str = http.post("/v1/batches", json=asked).json()["id"]
    return batch_id


def pointed(document: dict[str, Any], known: dict[str, list[str]]) -> dict[str, Any]:
    """The document with names that exist, so that cases come further than to a 404."""
    for schema in document["components"]["schemas"].values():
        for name, field in schema.get("properties", {}).items():
            if name in known:
                one_of = {"enum": known[name]}
                nullable = {"type": "null"} in field.pop("anyOf", [])
                field.clear()
                field.update({"anyOf": [one_of, {"type": "null"}]} if nullable else one_of)
    for operations in document["paths"].values():
        for operation in operations.values():
            for parameter in operation.get("parameters", []):
                if parameter["name"] in known:
                    parameter["schema"] = {"anyOf": [{"enum": known[parameter["name"]]}, {}]}
    return document


def run_schemathesis(server: ServerProcess, folder: Path, *options: str) -> dict[str, Any]:
    """Run its command against the server; the report."""
    http = server.http
    files = [upload(http) for _ in range(12)]
    batches = [create_batch(http, file_id) for file_id in files[:6]]
    document = http.get("/openapi.json").json()
    known = {
        "model": ["stand-in"],
        "file_id": files,
        "input_file_id": files,
        "batch_id": batches,
    }
    (folder / "openapi.json").write_bytes(msgspec.json.encode(pointed(document, known)))
    (folder / "schemathesis.toml").write_text(CONFIG)
    command = [sys.executable, "-m", "schemathesis.cli", "run", "openapi.json", "--url", server.url]
    command += ["--header", "Authorization: Bearer key", "--exclude-path", ENDLESS]
    command += ["--exclude-checks", "positive_data_acceptance", "--suppress-health-check", "all"]
    command += ["--warnings", "off"]
    command += ["--report", "json", "--report-json-path", "report.json", *options]
    done = subprocess.run(command, cwd=folder, env=dict(os.environ), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2000:]
    report: dict[str, Any] = msgspec.json.decode((folder / "report.json").read_bytes())
    num_excluded = command.count("--exclude-path")
    assert report["operations"]["tested"] == report["operations"]["total"] - num_excluded
    return report


def assert_unharmed(server: ServerProcess) -> None:
    """Requests are served, steps go on, nothing is held and nothing unforeseen was logged."""
    http = server.http
    wait_until(lambda: http.get("/load").json() == {"server_load": 0})
    for i in range(20):
        body = {"model": "stand-in", "prompt": f"good {i}", "max_tokens": 5}
        assert http.post("/v1/completions", json=body).status_code == 200
    assert http.get("/health/ready").status_code == 200
    assert "Traceback" not in server.output()
    assert "failed unexpectedly" not in server.output()


@pytest.mark.parametrize(
    ("options", "cases"),
    [
        pytest.param(SOME, 600, id="some"),
        pytest.param(MANY, 10_000, id="many", marks=pytest.mark.slow),
    ],
)
@pytest.mark.timeout(3600)
def test_no_case_is_answered_with_a_5xx_or_as_is_not_documented(
    tmp_path: Path, options: list[str], cases: int
) -> None:
    settings = {"batch_dir": str(tmp_path / "batches"), "api_keys": ["key"]}
    with run_server(settings=settings, engine={"max_model_len": 64}) as server:
        server.http.headers.update(KEY)
        report = run_schemathesis(server, tmp_path, *options)
        assert report["test_cases"]["generated"] >= cases
        assert_unharmed(server)
        print(f"{report['test_cases']['generated']} cases in {report['running_time']:.0f} s")

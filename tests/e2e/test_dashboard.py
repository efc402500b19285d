"""A real Prometheus scrapes a real server, and answers every query of the dashboard."""

import json
import math
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from tests.support.command_line import start
from tests.support.deploying import (
    PROMETHEUS,
    alert_rules,
    dashboard,
    dashboard_queries,
    filled_in,
    load_yaml,
)
from tests.support.http_server import free_port, wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed"),
]

KEY = "a-key-for-this-test"
INTERVAL = "30s"
LONG_PROMPT = " ".join(f"The number {i} follows {i - 1}." for i in range(1, 150))


@dataclass
class Prometheus:
    """One that runs, by its HTTP API."""

    http: httpx.Client

    def get(self, path: str, **params: str) -> Any:
        answer = self.http.get(f"/api/v1/{path}", params=params)
        assert answer.status_code == 200, answer.text
        body = answer.json()
        assert body["status"] == "success", body
        return body["data"]

    def values(self, query: str) -> list[float]:
        return [float(series["value"][1]) for series in self.get("query", query=query)["result"]]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The URL of `nsa-serve serve` with the built-in model."""
    flags = ["--port", "0", "--api-key", KEY, "--cpu-cache-gib", "0.5", "--log-format", "json"]
    with start("serve", *flags) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        drain = threading.Thread(target=process.stderr.read, daemon=True)
        drain.start()
        found = (re.search(rb"ready at (http://\S+)", line) for line in process.stdout)
        ready = next(match for match in found if match)
        yield ready[1].decode()
        process.terminate()
        assert process.wait(40) == 0


@pytest.fixture(scope="module")
def prometheus(server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Configured by the files that ship, but for addresses, paths and how often it scrapes."""
    folder = tmp_path_factory.mktemp("prometheus")
    (folder / "api-key").write_text(KEY)
    config = load_yaml(PROMETHEUS / "prometheus.yml")
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(PROMETHEUS / "alerts.yml")]
    (job,) = config["scrape_configs"]
    job["authorization"]["credentials_file"] = str(folder / "api-key")
    job["static_configs"][0]["targets"] = [server.removeprefix("http://")]
    (folder / "prometheus.yml").write_text(json.dumps(config))
    port = free_port()
    with (
        _running(
            "prometheus",
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--log.level=warn",
        ),
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as http,
    ):
        wait_until(lambda: _is_up(http))
        prometheus = Prometheus(http)
        wait_until(lambda: prometheus.values("up") == [1.0])
        yield prometheus


@pytest.fixture(scope="module", autouse=True)
def num_answered(server: str, prometheus: Prometheus) -> int:
    """Answers over several scrapes: how many requests, of two continuations each."""
    count = 0
    headers = {"Authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=server, headers=headers, timeout=120) as http:
        model = http.get("/v1/models").json()["data"][0]["id"]

        def ask(i: int) -> None:
            body = {"model": model, "prompt": f"{LONG_PROMPT} {i}", "max_tokens": 24, "n": 2}
            http.post("/v1/completions", json=body).raise_for_status()

        until = time.monotonic() + 15
        with ThreadPoolExecutor(2) as pool:
            while time.monotonic() < until or count < 6:
                count += len(list(pool.map(ask, range(2))))
        assert http.get("/nowhere").status_code == 404
    time.sleep(2.5)  # for two scrapes after the last answer
    return count


def test_the_scrape_bears_the_key(prometheus: Prometheus) -> None:
    (target,) = prometheus.get("targets")["activeTargets"]
    assert (target["health"], target["lastError"]) == ("up", "")


def test_the_dashboard_finds_the_model(prometheus: Prometheus) -> None:
    (variable,) = dashboard()["templating"]["list"]
    metric, label = re.fullmatch(r"label_values\((\S+), (\S+)\)", variable["definition"]).groups()  # type: ignore[union-attr]
    assert len(prometheus.get(f"label/{label}/values", **{"match[]": metric})) == 1


def test_every_query_of_the_dashboard_has_data(prometheus: Prometheus) -> None:
    (model,) = prometheus.get("label/model_name/values")
    for title, expression in dashboard_queries():
        values = prometheus.values(filled_in(expression, model_name=model, interval=INTERVAL))
        assert values, f"{title}: {expression}"
        assert any(math.isfinite(value) for value in values), f"{title}: {expression}"


def test_figures_are_what_was_asked_for(prometheus: Prometheus, num_answered: int) -> None:
    def value(query: str) -> float:
        (found,) = prometheus.values(query)
        return found

    assert value("nsa_serve:e2e_request_latency_seconds_count") == num_answered
    assert value("sum(nsa_serve:request_success_total)") == 2 * num_answered
    assert value("nsa_serve:prefix_cache_hits_total") > 0
    assert value("nsa_serve:num_requests_running") == 0
    assert value("nsa_serve:kv_cache_usage_perc") == 0
    assert value("nsa_serve:ready") == 1
    # The prompt is longer than the 1,024 tokens up to which every block is selected.
    assert value('nsa_serve:attention_tokens_read_total{branch="compressed"}') > 0
    selected = value('nsa_serve:attention_tokens_read_total{branch="selected"}')
    assert 0 < selected < value("nsa_serve:attention_tokens_context_total")


def test_alerts_are_evaluated_and_silent(prometheus: Prometheus) -> None:
    (group,) = prometheus.get("rules")["groups"]
    assert len(group["rules"]) == len(alert_rules())
    for rule in group["rules"]:
        assert (rule["health"], rule.get("lastError", "")) == ("ok", ""), rule["name"]
        assert rule["state"] == "inactive", rule["name"]


@contextmanager
def _running(*command: str) -> Iterator[None]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=sys.stderr)
    try:
        yield
    finally:
        process.terminate()
        process.wait(20)


def _is_up(http: httpx.Client) -> bool:
    try:
        return http.get("/-/ready").status_code == 200
    except httpx.TransportError:
        return False

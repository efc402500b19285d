"""The files that start the server beside Prometheus and Grafana, as tests read them."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "docker-compose.yml"
DOCKERFILE = ROOT / "Dockerfile"
PROMETHEUS = ROOT / "deploy" / "prometheus"
GRAFANA = ROOT / "deploy" / "grafana"
DASHBOARD = GRAFANA / "dashboards" / "nsa-serve.json"

_METRIC = re.compile(r"\b(?:nsa_serve:|process_)[a-z0-9_]+")


def load_yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def dashboard() -> Any:
    return json.loads(DASHBOARD.read_text())


def dashboard_queries() -> Iterator[tuple[str, str]]:
    """Title and expression of every query of every panel."""
    for panel in dashboard()["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]


def alert_rules() -> list[dict[str, Any]]:
    (group,) = load_yaml(PROMETHEUS / "alerts.yml")["groups"]
    rules: list[dict[str, Any]] = group["rules"]
    return rules


def metric_names(expression: str) -> set[str]:
    """Names of the metrics that a PromQL expression reads, without our prefix."""
    return {name.removeprefix("nsa_serve:") for name in _METRIC.findall(expression)}


def filled_in(expression: str, *, model_name: str, interval: str) -> str:
    """An expression with Grafana's variables replaced, as Grafana does it."""
    return expression.replace("$model_name", model_name).replace("$__rate_interval", interval)

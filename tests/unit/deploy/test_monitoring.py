"""Prometheus' and Grafana's files: every metric that they name is exported, alerts fire."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from nsa_api.app import create_app
from nsa_api.settings import ApiSettings
from tests.support.deploying import (
    PROMETHEUS,
    alert_rules,
    dashboard,
    dashboard_queries,
    load_yaml,
    metric_names,
)
from tests.support.fake_engine import FakeEngine

PROMTOOL = shutil.which("promtool")


def _exported() -> set[str]:
    registry = create_app(FakeEngine(), ApiSettings()).state.server.metrics.registry
    names = {sample.name for family in registry.collect() for sample in family.samples}
    # It has its labels, so its samples, with the first answer.
    return {name.removeprefix("nsa_serve:") for name in names} | {"http_requests_total"}


def test_every_metric_of_the_dashboard_is_exported() -> None:
    named = set().union(*(metric_names(query) for _, query in dashboard_queries()))
    assert len(named) > 20
    assert named <= _exported()


def test_every_metric_of_an_alert_is_exported() -> None:
    rules = alert_rules()
    assert all(rule["annotations"]["summary"] for rule in rules)
    named = set().union(*(metric_names(rule["expr"]) for rule in rules))
    assert len(named) > 3
    assert named <= _exported()


def test_panels_do_not_overlap_and_have_ids_of_their_own() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed")
def test_promtool_takes_the_configuration(tmp_path: Path) -> None:
    config = load_yaml(PROMETHEUS / "prometheus.yml")
    key = tmp_path / "key"
    key.touch()
    config["scrape_configs"][0]["authorization"]["credentials_file"] = str(key)
    config["rule_files"] = [str(PROMETHEUS / "alerts.yml")]
    path = tmp_path / "prometheus.yml"  # JSON is YAML
    path.write_text(json.dumps(config))
    done = subprocess.run(["promtool", "check", "config", str(path)], capture_output=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed")
def test_alerts_fire_when_they_should_and_only_then(tmp_path: Path) -> None:
    def series(name: str, values: str) -> dict[str, str]:
        return {"series": f'{name}{{job="nsa-serve",instance="server:8000"}}', "values": values}

    def expect(minute: int, alert: str, *severities: str) -> dict[str, object]:
        labels = {"job": "nsa-serve", "instance": "server:8000"}
        rule = next(rule for rule in alert_rules() if rule["alert"] == alert)
        text = rule["annotations"]["summary"].replace("{{ $labels.instance }}", "server:8000")
        firing = [
            {"exp_labels": {**labels, "severity": severity}, "exp_annotations": {"summary": text}}
            for severity in severities
        ]
        return {"eval_time": f"{minute}m", "alertname": alert, "exp_alerts": firing}

    tests = {
        "rule_files": [str(PROMETHEUS / "alerts.yml")],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [
                    series("up", "1x9 0x9"),
                    series("nsa_serve:ready", "1x9 0x9"),
                    series("nsa_serve:engine_restarts_total", "0x9 1x9"),
                    series("nsa_serve:engine_stalls_total", "0x19"),
                    series("nsa_serve:num_preemptions_total", "0+600x19"),
                ],
                "alert_rule_test": [
                    expect(9, "ServerDown"),
                    expect(13, "ServerDown", "page"),
                    expect(9, "NotReady"),
                    expect(13, "NotReady", "page"),
                    expect(9, "EngineRestarted"),
                    expect(12, "EngineRestarted", "warn"),
                    expect(12, "EngineStuck"),
                    expect(5, "Preemptions"),
                    expect(15, "Preemptions", "warn"),
                ],
            }
        ],
    }
    path = tmp_path / "tests.yml"
    path.write_text(json.dumps(tests))
    done = subprocess.run(["promtool", "test", "rules", str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr

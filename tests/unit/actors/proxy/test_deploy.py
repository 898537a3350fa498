"""The Grafana dashboard and the alert rules in ``deploy/`` ask for nothing that there is not."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab.http2.etcd_port import etcd_port
from lab.http2.http_client import request

DEPLOY = Path(__file__).parents[4] / "deploy"
SUFFIXES = {"histogram": ("_bucket", "_sum", "_count")}


def dashboard() -> Any:
    return json.loads((DEPLOY / "grafana-dashboard.json").read_text())


def rules() -> list[Any]:
    groups = yaml.safe_load((DEPLOY / "prometheus-alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def expressions() -> dict[str, list[str]]:
    shown = [target["expr"] for panel in dashboard()["panels"] for target in panel.get("targets", ())]
    shown += [each["query"]["query"] for each in dashboard()["templating"]["list"] if each["type"] == "query"]
    return {"dashboard": shown, "alerts": [rule["expr"] for rule in rules()]}


@pytest.fixture(scope="module")
def scraped() -> set[str]:
    """Names of samples."""
    with etcd_port() as port:
        text = "".join([request(port.endpoint, "GET", page).body.decode() for page in ("/metrics", "/metrics?members")])
    found: set[str] = set()
    for name, kind in re.findall(r"^# TYPE (\w+) (\w+)$", text, re.MULTILINE):
        for suffix in SUFFIXES.get(kind, ("",)):
            found.add(name + suffix)
    return found


@pytest.mark.parametrize("where", ["dashboard", "alerts"])
def test_each_name_is_in_a_real_scrape(where: str, scraped: set[str]) -> None:
    asked = [re.findall(r"\b(?:etcd|grpc|raykeeper|process)_\w+\b(?!=)", each) for each in expressions()[where]]
    names = {name for each in asked for name in each if name not in ("grpc_method", "grpc_code")}
    assert len(names) > 15
    assert names - scraped == set()


def test_each_expression_names_a_metric_and_its_parentheses_match() -> None:
    for each in (*expressions()["dashboard"], *expressions()["alerts"]):
        assert re.search(r"\b(etcd|grpc|raykeeper|process)_|\bup\{", each), each
        assert each.count("(") == each.count(")"), each
        assert each.count("{") == each.count("}"), each


def test_rules_have_what_an_operator_needs() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(names) == len(set(names))
    for rule in rules():
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"]["summary"]


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    ids = [panel["id"] for panel in dashboard()["panels"]]
    assert len(ids) == len(set(ids))
    for panel in dashboard()["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken, panel["title"]
        assert all(0 <= x < 24 for x, _ in cells)
        taken |= cells

"""The list of metrics, its table in the documentation, the exporter's rules and the Grafana board say the same."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from medflex.airflow.metrics import METRICS, TAGS, Kind, Metric

ROOT = Path(__file__).parents[1]
BOARD: dict[str, Any] = json.loads((ROOT / "deploy/grafana/medflex.json").read_text())
RULES: dict[str, Any] = yaml.safe_load((ROOT / "deploy/statsd/mapping.yml").read_text())
PAGE = (ROOT / "docs/observability.md").read_text()
PANELS = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS = [target["expr"] for panel in PANELS for target in panel["targets"]]


def exported(metric: Metric) -> str:
    """Return the name that a metric has in Prometheus."""
    endings = {Kind.COUNTER: "_total", Kind.TIMING: "_seconds", Kind.GAUGE: "_seconds" if metric.unit == "s" else ""}
    return metric.name.replace(".", "_") + endings[metric.kind]


def series() -> dict[str, set[str]]:
    """Return the names of all series that the exporter makes, with their labels."""
    found: dict[str, set[str]] = {}
    for metric in METRICS:
        name, labels = exported(metric), set(metric.tags)
        if metric.kind is Kind.TIMING:
            found |= {f"{name}_bucket": labels | {"le"}, f"{name}_sum": labels, f"{name}_count": labels}
        else:
            found[name] = labels
    return found


def test_the_documentation_has_exactly_these_metrics() -> None:
    rows = re.findall(r"^\| `(medflex\.[\w.]+)` \| (\w+) \| ([\w ]+) \| (.*?) \| (.*) \|$", PAGE, flags=re.MULTILINE)
    expected = [
        (item.name, item.kind.value, item.unit, ", ".join(f"`{tag}`" for tag in item.tags) or "–", item.meaning)
        for item in METRICS
    ]
    assert rows == expected


def test_the_documentation_has_every_tag() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", PAGE, flags=re.MULTILINE))
    assert set(rows) >= set(TAGS)


def test_the_exporter_has_one_rule_for_each_metric() -> None:
    kinds = {Kind.COUNTER: "counter", Kind.GAUGE: "gauge", Kind.TIMING: "observer"}
    rules = {rule["match"]: (rule["match_metric_type"], rule["name"], rule["help"]) for rule in RULES["mappings"]}
    assert len(rules) == len(RULES["mappings"])
    assert rules == {
        f"airflow.{item.name}": (kinds[item.kind], exported(item), item.meaning.replace("`", "")) for item in METRICS
    }
    buckets = RULES["defaults"]["histogram_options"]["buckets"]
    assert buckets == sorted(buckets)
    # The promise of a withdrawal and its deadline can be read off exactly.
    assert {60, 900} <= set(buckets)


def test_the_board_is_a_board() -> None:
    assert BOARD["schemaVersion"] >= 39
    assert BOARD["uid"] == "medflex"
    variables = {item["name"]: item for item in BOARD["templating"]["list"]}
    assert variables["datasource"]["query"] == "prometheus"
    assert variables["mode"]["query"].split(",") == list(TAGS["mode"])
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])
    for panel in PANELS:
        assert panel["title"]
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        # Nobody's own data source stands in the file.
        assert {target["datasource"]["uid"] for target in panel["targets"]} == {"${datasource}"}


def test_no_two_panels_lie_on_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in BOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not taken & cells, panel["title"]
        taken |= cells


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_an_expression_names_series_and_labels_that_exist(expression: str) -> None:
    known = series()
    bare = re.sub(r'"[^"]*"', '""', expression)
    used = set(re.findall(r"\bmedflex_\w+", bare))
    assert used
    assert used <= known.keys()
    for name, selector in re.findall(r"(medflex_\w+)\{([^}]*)\}", expression):
        for label, value in re.findall(r'(\w+)\s*(?:=~|!~|!=|=)\s*"([^"]*)"', selector):
            assert label in known[name], (name, label)
            if value.isidentifier():
                assert value in TAGS[label], (label, value)
    (labels,) = {frozenset(known[name]) for name in used}
    for group in re.findall(r"\b(?:by|without) \(([^)]*)\)", bare):
        assert {label.strip() for label in group.split(",")} <= labels, group
    assert set(re.findall(r"\$(\w+)", expression)) <= {"mode", "__rate_interval"}
    assert [bare.count(opening) for opening in "({["] == [bare.count(closing) for closing in ")}]"]


def test_a_legend_names_labels_that_the_expression_keeps() -> None:
    for panel in PANELS:
        for target in panel["targets"]:
            named = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            kept = {
                label.strip() for group in re.findall(r"\bby \(([^)]*)\)", target["expr"]) for label in group.split(",")
            }
            assert named <= kept, panel["title"]


def test_every_metric_is_on_the_board() -> None:
    text = " ".join(EXPRESSIONS)
    assert [item.name for item in METRICS if not re.search(rf"\b{exported(item)}(?:_bucket)?\b", text)] == []

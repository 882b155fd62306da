"""The dashboard shows every metric that a worker has, and no other."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from celery_linepool.metrics import Collector
from celery_linepool.recycle import Limits

pytestmark = pytest.mark.newest_celery

HOME = Path(__file__).parent.parent
DASHBOARD = json.loads((HOME / "docs" / "grafana.json").read_text())
#: What Prometheus adds to every sample.
OF_PROMETHEUS = {"job", "instance"}


def expressions():
    found = [t["expr"] for panel in DASHBOARD["panels"] for t in panel["targets"]]
    assert len(found) > 9
    return found


def exported(pool):
    """The labels of each metric, by its name."""
    pool.children.figures.outcomes["ok"] += 1
    pool.children.figures.restarts["died"] += 1
    registry = CollectorRegistry()
    registry.register(Collector({"default": pool.children}))
    labels = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            labels.setdefault(sample.name, set()).update(sample.labels)
    return labels


def test_it_has_every_metric_and_no_other(lone_pool):
    labels = exported(lone_pool(["sleep", "600"], Limits()))
    shown = set(re.findall(r"\blinepool_\w+", " ".join(expressions())))
    assert shown == set(labels)


def test_its_labels_are_those_of_the_metrics(lone_pool):
    labels = exported(lone_pool(["sleep", "600"], Limits()))
    for text in expressions():
        of_metrics = set.intersection(*(labels[n] for n in set(names(text))))
        for group in re.findall(r" by \((.*?)\)", text):
            assert set(group.split(", ")) <= of_metrics
        for selector in re.findall(r"{(.*?)}", text):
            assert set(re.findall(r"(\w+)=", selector)) <= of_metrics | OF_PROMETHEUS
    legends = [
        (label, target["expr"])
        for panel in DASHBOARD["panels"]
        for target in panel["targets"]
        for label in re.findall(r"{{(\w+)}}", target["legendFormat"])
    ]
    assert legends
    for label, text in legends:
        assert label in re.findall(r"\w+", re.findall(r" by \((.*?)\)", text)[0])


def names(text):
    return re.findall(r"\blinepool_\w+", text)


def test_it_can_be_imported():
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}
    assert len(places) == len(panels)
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$(\w+)|\$\{(\w+)\}", json.dumps(DASHBOARD)))
    assert {a or b for a, b in used} - {"__rate_interval", "__all"} == variables

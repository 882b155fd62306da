"""Scenarios and docs/protocol.md: each says what the other one does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Dict, List

import pytest

from celery_linepool.kit.languages import LANGUAGES
from celery_linepool.kit.remedies import remedy, table
from celery_linepool.kit.scenario import Level, Scenario
from celery_linepool.kit.scenarios import ALL, GATES

pytestmark = pytest.mark.outer_celerys

PROTOCOL = Path(__file__).parent.parent / "docs" / "protocol.md"


def rules(text: str) -> Dict[str, str]:
    """The sections and their numbered rules, such as ``1`` and ``1.5``."""
    found: Dict[str, List[str]] = {}
    section = rule = ""
    for line in text.splitlines():
        head = re.match(r"## (\d+)\.", line)
        item = re.match(r"(\d+)\. ", line)
        if head:
            section = rule = head.group(1)
        elif item:
            rule = f"{section}.{item.group(1)}"
        elif not line.startswith("   "):
            rule = section
        if rule:
            found.setdefault(rule, []).append(line.strip())
    return {rule: " ".join(lines) for rule, lines in found.items()}


def named(text: str) -> Dict[str, List[str]]:
    """The scenarios that a text names for each rule, as ``(check: one, two)``."""
    return {
        rule: re.split(r",\s*", "".join(names.group(1).split("`")))
        for rule, words in rules(text).items()
        for names in [re.search(r"\(check: ([^)]*)\)", words)]
        if names
    }


RULES = rules(PROTOCOL.read_text())
NAMED = named(PROTOCOL.read_text())


def test_rules_are_read() -> None:
    text = "## 7. A\n\nIntro\n\n1. One,\n   two (check: `a-b`,\n   `c`).\n2. Three\n"
    assert rules(text) == {
        "7": "## 7. A  Intro ",
        "7.1": "One, two (check: `a-b`, `c`).".replace("One", "1. One"),
        "7.2": "2. Three",
    }
    assert named(text) == {"7.1": ["a-b", "c"]}


def test_each_scenario_proves_a_rule_that_there_is() -> None:
    assert {row.id: row.rule for row in ALL if row.rule not in RULES} == {}


def test_what_a_child_must_do_is_proved() -> None:
    proved = {row.rule for row in ALL if row.level is Level.MUST}
    must = {rule for rule, text in RULES.items() if "MUST" in text}
    assert must - proved == set()


def test_the_document_names_the_scenarios_of_each_rule() -> None:
    proofs: Dict[str, List[str]] = {}
    for row in ALL:
        proofs.setdefault(row.rule, []).append(row.id)
    assert NAMED == proofs


def test_the_document_names_scenarios_that_there_are() -> None:
    ids = {row.id for row in ALL}
    for rule, names in NAMED.items():
        assert set(names) <= ids, rule


@pytest.mark.parametrize("row", ALL, ids=lambda row: row.id)
def test_a_scenario_is_explained(row: Scenario) -> None:
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", row.id)
    assert row.why.endswith(".")
    assert row.level in Level
    for language in LANGUAGES:
        assert remedy(row.mend, language)


def test_ids_are_unique() -> None:
    assert len({row.id for row in ALL}) == len(ALL) >= 50
    assert set(GATES) <= {row.id for row in ALL}


def test_remedies() -> None:
    used = {row.mend for row in ALL} | {"reply", "ids", "hello", "flush"}
    assert set(table().sections()) == used
    for name in table().sections():
        texts = table()[name]
        assert "other" in texts, name
        assert set(texts) <= set(LANGUAGES), name

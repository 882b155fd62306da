"""docs/testing.md, followed word for word, and what the fixture says of a bad child."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from lone_pool import script
from pages import Page, Reader

from celery_linepool.settings import read

pytest_plugins = ["celery_linepool.pytest_plugin"]


def test_the_page(tmp_path: Path) -> None:
    page = Page("testing.md")
    *tests, last = page.sections
    reader = Reader(tmp_path, "no server is needed")
    # The output of its pytest is not on the page: what fails is shown here.
    reader.env["PYTEST_ADDOPTS"] = "-q -p no:cacheprovider"
    for name in tests:
        reader.follow(page.sections[name])
    said = reader.run("pytest")
    assert re.search(r"^6 passed in ", said, re.MULTILINE), said
    # The last section is a setting.
    [line] = re.findall(r"^app\.conf\.(\w+) = (.*)$", page.sections[last], re.M)
    conf: dict[str, Any] = {line[0]: eval(line[1]), "linepool_command": ["true"]}
    assert read(conf, 1)["default"].watch == ("worker.rb", "lib", "config/**/*.yml")


def test_a_child_that_ends_in_its_task(linepool_child: Any, tmp_path: Path) -> None:
    child = linepool_child(script("lives.rb"))
    with pytest.raises(AssertionError, match="(?s)a reply.*signal 9.*about to crash"):
        child.call("lives.crash", str(tmp_path / "crashed"))
    assert child.stop() == -9


def test_a_child_that_is_odd_or_silent(linepool_child: Any, tmp_path: Path) -> None:
    odd = linepool_child(script("prints.sh"))
    odd.ask("any", str(tmp_path / "odd"))
    assert ["a line that is no protocol" in text for text in odd.oddities] == [True]
    silent = linepool_child(script("silent.js"), timeout=1)
    silent.call("any", __file__)  # it boots, and answers
    with pytest.raises(AssertionError, match="(?s)expected a reply within.*thinking"):
        silent.call("any", str(tmp_path / "silent"))


def test_a_cancelled_task(linepool_child: Any) -> None:
    child = linepool_child(script("converses.cjs"))
    id = child.send("talk.sleep", 1_000_000)
    child.cancel(id)
    assert child.wait(id)["status"] == "cancelled"

"""docs/testing.md, followed word for word, and what the fixture says of a bad child."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from lone_pool import CHILDREN, script
from pages import Page, Reader

from celery_linepool.settings import read

pytest_plugins = ["celery_linepool.pytest_plugin"]
pytestmark = pytest.mark.newest_celery


def test_the_page(tmp_path: Path) -> None:
    page = Page("docs/testing.md")
    *tests, last = page.sections
    reader = Reader(tmp_path, "no server is needed")
    # Its own pytest at the end, too: that fails if a test does, or if there is none.
    for name in tests:
        reader.follow(page.sections[name])
    assert len(list(tmp_path.glob("test_*.py"))) == 3
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
    odd = linepool_child(script("converses.cjs"))
    assert odd.call("talk.noise", "DEBUG: loading") is True
    assert "a line that is no protocol: b'DEBUG: loading'" in odd.oddities
    silent = linepool_child(["node", str(CHILDREN / "silent.js")], timeout=1)
    silent.call("any", __file__)  # it boots, and answers
    with pytest.raises(AssertionError, match="(?s)expected a reply within.*thinking"):
        silent.call("any", str(tmp_path / "silent"))


def test_a_cancelled_task(linepool_child: Any) -> None:
    child = linepool_child(script("converses.cjs"))
    id = child.send("talk.sleep", 1_000_000)
    child.cancel(id)
    assert child.wait(id)["status"] == "cancelled"

"""The documentation says what the code has: no setting, link or table is missing."""

from __future__ import annotations

import ast
import re
from dataclasses import MISSING, fields
from enum import Enum
from pathlib import Path
from typing import Any, Iterator

import click
import pytest
from printed import Module, messages

import celery_linepool
from celery_linepool.checks import CHECKS
from celery_linepool.cli import linepool
from celery_linepool.metrics import Collector
from celery_linepool.settings import OF_THE_WORKER, PoolSettings, read

pytestmark = pytest.mark.newest_celery

HOME = Path(__file__).parent.parent
DOCS = HOME / "docs"
PACKAGE = Path(celery_linepool.__file__).parent
SETTINGS = (DOCS / "settings.md").read_text()
PAGES = sorted([*HOME.glob("*.md"), *DOCS.rglob("*.md")])


# --- settings -------------------------------------------------------------------------

ROW = re.compile(r"^\| `(\w+)` \| (.*?) \|(.*?)\| (\S.*) \|$", re.MULTILINE)
#: What the worker fills in, in words.
FILLED_IN = {
    "command": "required",
    "tasks": '`["*"]` for a lone pool',
    "size": "the worker's `-c`",
}


def default(option: str) -> str:
    """A setting's default, as its row has it."""
    if option in FILLED_IN:
        return FILLED_IN[option]
    [field] = [field for field in fields(PoolSettings) if field.name == option]
    value: Any = field.default
    if value is MISSING or value is None or value == ():
        return "none"
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, str):
        return f'`"{value}"`'
    return f"`{value:g}`" if type(value) is float else f"`{value}`"


def test_every_setting_has_its_row():
    rows = {name: (default, unit) for name, default, unit, _ in ROW.findall(SETTINGS)}
    assert set(rows) == set(CHECKS) | OF_THE_WORKER
    for option, check in CHECKS.items():
        assert rows[option][0] == default(option), option
        assert (rows[option][1] == " s ") == (check is CHECKS["timeout"]), option


def test_what_the_worker_fills_in():
    pool = read({"linepool_command": ["true"]}, 7)["default"]
    assert pool.tasks == ("*",) and pool.size == 7


def test_every_setting_that_is_named_exists():
    known = {f"linepool_{option}" for option in CHECKS} | OF_THE_WORKER
    assert set(re.findall(r"`(linepool_\w+) = ", SETTINGS)) <= known
    table = (HOME / "README.md").read_text().partition("\n## Settings\n")[2]
    rows = re.findall(r"^\| (`linepool_.*?) \|", table.partition("\n## ")[0], re.M)
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert named and named <= known


def test_every_variable_of_a_child_has_its_row():
    pool = read({"linepool_command": ["true"], "linepool_inherit_env": False}, 1)
    ours = [name for name in pool["default"].environment() if "LINEPOOL" in name]
    assert re.findall(r"^\| `(LINEPOOL_\w+)` \| .", SETTINGS, re.MULTILINE) == ours


# --- links ----------------------------------------------------------------------------

CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^()\s]+)\)")


def sections(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and Sphinx make them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    words = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {heading.replace(" ", "-") for heading in words}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(HOME)))
def test_every_link_leads_somewhere(page):
    for link in LINK.findall(CODE.sub("", page.read_text())):
        path, _, section = link.partition("#")
        if ":" in path:
            continue  # to the world outside
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not section or section in sections(target), link


def test_every_page_is_in_the_index():
    index = (DOCS / "index.md").read_text()
    trees = "".join(re.findall(r"```{toctree}(.*?)```", index, re.DOTALL)).split()
    pages = {str(page.relative_to(DOCS))[:-3] for page in DOCS.rglob("*.md")}
    assert pages - {"index"} <= {entry.strip("<>") for entry in trees}


# --- diagrams -------------------------------------------------------------------------


def tables() -> Iterator[str]:
    """Every table of moves in the package."""
    for module in PACKAGE.rglob("*.py"):
        for node in ast.parse(module.read_text()).body:
            if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "MOVES":
                yield f"celery_linepool.{module.stem}.MOVES"


def test_every_table_of_moves_has_its_diagram():
    page = (DOCS / "architecture.md").read_text()
    drawn = re.findall(r"^```{states} (\S+)$", page, re.MULTILINE)
    assert sorted(drawn) == sorted(tables()) != []


# --- commands and metrics -------------------------------------------------------------


def test_every_command_and_option_is_named():
    page = (DOCS / "commands.md").read_text()
    context = click.Context(linepool)
    for name in linepool.list_commands(context):
        command = linepool.get_command(context, name)
        assert command is not None
        assert f"`{name}" in page or f"linepool {name} " in page
        for option in command.params:
            for text in option.opts if isinstance(option, click.Option) else ():
                assert re.search(rf"`{text}[ `,]", page), f"{name} {text}"


def test_every_metric_has_its_row():
    page = (DOCS / "metrics.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| ([\w, ]+) \| .", page, re.MULTILINE)
    total = {"counter": "_total", "gauge": "", "histogram": ""}
    assert set(rows) == {
        (family.name + total[family.type], family.type, ", ".join(family._labelnames))
        for family in Collector({}).collect()
    }


# --- messages -------------------------------------------------------------------------

#: A paragraph of messages, each on a line of its own, and then the advice.
ENTRY = re.compile(r"^((?:`[^\n]+`\\\n)+)(.+?)(?=\n\n|\Z)", re.MULTILINE | re.DOTALL)
ENTRIES = ENTRY.findall((DOCS / "troubleshooting.md").read_text())
EXPLAINED = [m for lines, _ in ENTRIES for m in re.findall(r"^`(.*)`\\$", lines, re.M)]


def test_every_message_has_its_paragraph():
    assert set(messages()) - set(EXPLAINED) == set()


def test_every_paragraph_has_its_message():
    assert set(EXPLAINED) - set(messages()) == set()
    assert len(EXPLAINED) == len(set(EXPLAINED)) > 100
    assert all(len(advice) > 20 for _, advice in ENTRIES)


def test_what_is_read_out_of_the_source(tmp_path):
    module = tmp_path / "module.py"
    module.write_text(SOURCE)
    assert list(Module(module).messages()) == [
        *("a … of …", "no … here", "one", "other", "told it", "put together: …"),
        *("does this", "refused: …"),
    ]


SOURCE = """
logger.warning("linepool: a %.1f of %r"[10:] if 0 else "a %.1f of %r", 1, 2)

def f(x):
    raise SettingError("x", f"no {x!r} here")

def g(x):
    raise ValueError("one" if x else "other")

def h(self, member):
    Loss(1, self.says(member, "told it"))
    text = "put together: " + str(member)
    raise BootError(text)

def i():
    raise SpawnError(_why())

def _why():
    return "does this"

def j(exc):
    raise LookupError(str(exc))

def k(exc):
    return {"error": f"refused: {exc}", "other": "no error"}
"""

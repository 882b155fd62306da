"""The plan of the house: who may import whom, and how large a function may be."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import celery_linepool

PACKAGE = Path(celery_linepool.__file__).parent
HOME = Path(__file__).parent.parent
MODULES = {path.stem: path for path in sorted(PACKAGE.glob("*.py"))}
TREES = {name: ast.parse(path.read_text()) for name, path in MODULES.items()}

#: Where Celery, kombu and billiard are spoken to. Everything else can be read and
#: tested by someone who never saw them.
SPEAKS_CELERY = {
    "body",
    "cli",
    "compat",
    "consumer",
    "control",
    "fetching",
    "outcomes",
    "pool",
    "request",
    "runtime",
    "settings",
    "settler",
    "steer",
    "tasks",
}
#: What the wire must not know: it has no I/O, no clock and no thread.
NOT_FOR_THE_WIRE = {
    "asyncio",
    "billiard",
    "celery",
    "greenlet",
    "io",
    "kombu",
    "os",
    "select",
    "selectors",
    "socket",
    "subprocess",
    "threading",
    "time",
}
LONGEST_FUNCTION = 50


def runtime_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node but those that only a type checker sees."""
    yield tree
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            for other in child.orelse:
                yield from runtime_nodes(other)
        else:
            yield from runtime_nodes(child)


def imported(name: str) -> set[str]:
    """The full names of what a module imports when it runs."""
    found: set[str] = set()
    for node in runtime_nodes(TREES[name]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1, "one folder, no packages in it"
            modules = [node.module] if node.module else [a.name for a in node.names]
            found |= {f".{module}" for module in modules}
        elif isinstance(node, ast.ImportFrom):
            found.add(str(node.module))
    return found


def own_imports(name: str) -> set[str]:
    # The kit is another house, which stands on this one.
    own = {module[1:] for module in imported(name) if module.startswith(".")}
    return {module for module in own if not module.startswith("kit.")}


def others(name: str) -> set[str]:
    """The top-level packages of others that a module imports."""
    return {m.partition(".")[0] for m in imported(name) if not m.startswith(".")}


def levels() -> dict[str, int]:
    """How many rooms are below a module; fails if that is a circle."""
    found: dict[str, int] = {}
    waiting = {name: own_imports(name) for name in TREES}
    while waiting:
        free = [name for name, needs in waiting.items() if needs <= set(found)]
        assert free, f"these import each other: {sorted(waiting)}"
        for name in free:
            needs = waiting.pop(name)
            found[name] = 1 + max((found[n] for n in needs), default=-1)
    return found


def test_imports_go_one_way() -> None:
    found = levels()
    assert found["errors"] == found["backoff"] == found["timers"] == 0
    for name in TREES:
        for other in own_imports(name):
            assert found[other] < found[name]


def test_every_module_that_is_imported_exists() -> None:
    for name in TREES:
        assert own_imports(name) <= set(TREES), name


def test_celery_is_imported_only_where_it_is_spoken_to() -> None:
    speaks = {n for n in TREES if others(n) & {"billiard", "celery", "kombu"}}
    assert speaks == SPEAKS_CELERY


def test_the_wire_knows_nothing_but_bytes() -> None:
    for name in ("messages", "protocol", "encoding"):
        assert others(name) & NOT_FOR_THE_WIRE == set()
        assert own_imports(name) <= {"errors", "messages", "protocol"}


@pytest.mark.parametrize("name", ["errors", "backoff", "timers", "protocol"])
def test_what_is_pure_stays_pure(name: str) -> None:
    assert others(name) & NOT_FOR_THE_WIRE == set()


def test_the_package_itself_imports_nothing_of_weight() -> None:
    # Every celery command imports it.
    assert own_imports("__init__") == set()
    assert others("__init__") <= {"__future__", "importlib", "typing"}
    assert own_imports("cli") == {"control"}
    assert own_imports("control") == set()
    for name in ("cli", "control"):
        assert others(name) <= {"__future__", "typing", "click", "celery", "kombu"}


def functions() -> list[tuple[str, int]]:
    return [
        (f"{name}.{node.name}", (node.end_lineno or 0) - node.lineno + 1)
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]


def test_a_function_fits_on_a_screen() -> None:
    assert [(f, n) for f, n in functions() if n > LONGEST_FUNCTION] == []


def is_silent(handler: ast.ExceptHandler, lines: list[str]) -> bool:
    """Whether an ``except`` passes without a word on why that is right."""
    if not all(isinstance(node, (ast.Pass, ast.Continue)) for node in handler.body):
        return False
    end = handler.body[-1].end_lineno or handler.lineno
    return not any("#" in line for line in lines[handler.lineno - 1 : end])


def silent_handlers(source: str) -> list[int]:
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ExceptHandler) and is_silent(node, source.splitlines())
    ]


def test_no_except_passes_silently() -> None:
    found = {name: silent_handlers(path.read_text()) for name, path in MODULES.items()}
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_and_one_that_did_would_be_found() -> None:
    assert silent_handlers("try:\n    x\nexcept E:\n    pass\n") == [3]
    assert silent_handlers("try:\n    x\nexcept E:\n    pass  # why\n") == []


def test_no_bare_except() -> None:
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ExceptHandler):
                assert node.type is not None, f"{name}:{node.lineno}"


def repository() -> list[Path]:
    """The files that are, or will be, part of the project."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
            cwd=HOME,
            check=True,
            capture_output=True,
            text=True,
        ).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not in a clone of the repository")
    return [HOME / name for name in listed if (HOME / name).is_file()]


#: Folders of one machine. Spelled in pieces, or this file would be found.
MACHINE = re.compile("|".join(f"/{name}\\b" for name in ("wor" + "k", "roo" + "t")))


def test_nothing_speaks_of_one_machine() -> None:
    found = []
    for path in repository():
        text = path.read_bytes().decode(errors="replace")
        for number, line in enumerate(text.splitlines(), 1):
            # Part of a longer path, or of an address, it is somebody else's word.
            for match in MACHINE.finditer(line):
                before = line[: match.start()]
                if not before or before[-1] in " \t\"'`=(:[":
                    found.append(f"{path.relative_to(HOME)}:{number}: {line.strip()}")
    assert found == []

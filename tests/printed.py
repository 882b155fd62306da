"""The messages that the package can log or raise, read out of its source.

Each is one text, with … for what is filled in. Where a message is put together in
another function, or in a variable, it is looked for there.
"""

from __future__ import annotations

import ast
import re
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Iterator, Union

import celery_linepool

PACKAGE = Path(celery_linepool.__file__).parent
Function = Union[ast.FunctionDef, ast.AsyncFunctionDef]

LEVELS = {"debug", "info", "warning", "error", "critical", "exception"}
#: Calls that make a message, and which of their arguments it is.
MAKERS = {
    **dict.fromkeys(["SettingError", "Loss"], 1),
    **dict.fromkeys(["BootError", "ForeignError", "LinePoolError", "PoisonError"], 0),
    **dict.fromkeys(["RemoteProtocolError", "LocalProtocolError", "RequestError"], 0),
    **dict.fromkeys(["SpawnError", "InvalidTaskError", "WorkerLostError"], 0),
    **dict.fromkeys(["BackendStoreError", "ValueError", "LookupError"], 0),
    **dict.fromkeys(["Violation", "RuntimeError", "Reject", "Ignore"], 0),
    **dict.fromkeys(["click.UsageError", "click.ClickException"], 0),
    **dict.fromkeys(["click.BadParameter", "self.fail", "nok"], 0),
    **{"self._violate": 0, "self._no_object": 1, "self.say": 0, "self._log": 0},
}
#: Functions that return one.
TELLERS = {"exit_text"}
#: What `celery linepool check` says of a child has its remedy beside it, and what the
#: check tasks raise is what they were asked to.
SPEAK_FOR_THEMSELVES = {"scenarios", "check"}


class Module:
    """The messages of one module."""

    def __init__(self, path: Path) -> None:
        self.tree = ast.parse(path.read_text())
        self.functions: dict[str, Function] = {}
        self._inside: dict[ast.AST, Function] = {}
        for node in ast.walk(self.tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                self.functions[node.name] = node
                # The innermost one comes last.
                self._inside.update(dict.fromkeys(ast.walk(node), node))

    def messages(self) -> Iterator[str]:
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Call):
                yield from self._of_call(node)
            elif isinstance(node, ast.FunctionDef) and node.name in TELLERS:
                yield from self._of_function(node, set())
            elif isinstance(node, ast.Dict):
                yield from self._of_answer(node)

    def _of_call(self, call: ast.Call) -> Iterator[str]:
        name = _dotted(call.func)
        if name.startswith("logger.") and name[7:] in LEVELS:
            for text in self._texts(call.args[0], set()):
                yield re.sub(r"%[.\d]*[a-z]", "…", text)
        elif name == "super().__init__" and isinstance(self._class(call), ast.ClassDef):
            yield from self._texts(call.args[0], set()) if call.args else ()
        elif name in MAKERS and len(call.args) > MAKERS[name]:
            yield from self._texts(call.args[MAKERS[name]], set())

    def _class(self, node: ast.AST) -> ast.ClassDef | None:
        """The error of the command line whose constructor this is in."""
        for found in ast.walk(self.tree):
            if isinstance(found, ast.ClassDef) and "click." in ast.unparse(found):
                if any(inside is node for inside in ast.walk(found)):
                    return found
        return None

    def _of_answer(self, answer: ast.Dict) -> Iterator[str]:
        """`{"error": ...}`, to who steers a worker."""
        for key, value in zip(answer.keys, answer.values):
            if isinstance(key, ast.Constant) and key.value == "error":
                yield from self._texts(value, set())

    def _texts(self, node: ast.AST, seen: set[ast.AST]) -> Iterator[str]:
        """What an expression can be, as far as it is text of ours."""
        if node in seen:
            return
        seen = seen | {node}
        text = _literal(node)
        if text is not None:
            yield text
        elif isinstance(node, ast.BinOp):
            yield from _joined(self._texts(node.left, seen), node.right)
        elif isinstance(node, (ast.BoolOp, ast.IfExp)):
            parts = node.values if isinstance(node, ast.BoolOp) else [node.body]
            parts = parts + ([node.orelse] if isinstance(node, ast.IfExp) else [])
            yield from chain(*(self._texts(part, seen) for part in parts))
        elif isinstance(node, ast.Name):
            yield from self._assigned(node, seen)
        elif isinstance(node, ast.Call):
            yield from self._returned(node, seen)

    def _assigned(self, name: ast.Name, seen: set[ast.AST]) -> Iterator[str]:
        function = self._inside.get(name)
        for node in ast.walk(function) if function else ():
            if isinstance(node, ast.Assign) and node.targets[0] != name:
                if _dotted(node.targets[0]) == name.id:
                    yield from self._texts(node.value, seen)

    def _returned(self, call: ast.Call, seen: set[ast.AST]) -> Iterator[str]:
        name = _dotted(call.func).rpartition(".")[2]
        if name in ("says", "_says"):  # "child pid … of pool … <what>"
            yield from self._texts(call.args[1], seen)
        elif name in self.functions:
            yield from self._of_function(self.functions[name], seen)

    def _of_function(self, function: Function, seen: set[ast.AST]) -> Iterator[str]:
        for node in ast.walk(function):
            if isinstance(node, ast.Return) and node.value is not None:
                yield from self._texts(node.value, seen)


def _dotted(node: ast.AST) -> str:
    """The name that an expression is, such as logger.info; empty if it is none."""
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    if isinstance(node, ast.Call):
        return f"{_dotted(node.func)}()"
    return node.id if isinstance(node, ast.Name) else ""


def _joined(left: Iterator[str], right: ast.AST) -> Iterator[str]:
    for text in left:
        yield text + (_literal(right) or "…")


def _literal(node: ast.AST) -> str | None:
    """The text of a literal."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(
            str(part.value) if isinstance(part, ast.Constant) else "…"
            for part in node.values
        )
    return None


@lru_cache(maxsize=None)
def messages() -> dict[str, set[str]]:
    """Every message, and the modules that have it."""
    found: dict[str, set[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        place = path.relative_to(PACKAGE)
        if SPEAK_FOR_THEMSELVES & set(place.parts[:-1]):
            continue
        for text in Module(path).messages():
            text = " ".join(text.replace("linepool: ", "").split())
            text = re.sub("…(?: ?…)+", "…", text).strip()
            if text.strip("… :;"):
                found.setdefault(text, set()).add(str(place))
    return found


if __name__ == "__main__":
    for text, places in sorted(messages().items(), key=lambda item: sorted(item[1])):
        print(f"{', '.join(sorted(places)):36} {text}")

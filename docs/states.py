"""The directive `states`: a table of moves in the code, as a diagram.

It names the table: `celery_linepool.protocol.MOVES`. What the diagram shows is what the
code allows, at the moment at which the page is built.
"""

from __future__ import annotations

import subprocess
from collections import defaultdict
from importlib import import_module
from typing import Any, Dict, List, Mapping, Tuple

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx

LOOK = """
    rankdir=LR; bgcolor=transparent; nodesep=0.5; ranksep=0.8
    node [shape=box style=rounded fontname="sans-serif" fontsize=12 height=0.4]
    edge [fontname="sans-serif" fontsize=11 arrowsize=0.7]
    "" [shape=circle style=filled label="" width=0.12 height=0.12]
"""


def drawing(moves: Mapping[Any, Any]) -> str:
    """A table of moves as a graph for `dot`; the first state is where all begins.

    Arguments:
        moves: for each state those that may follow, or those by what leads there.
    """
    edges: Dict[Tuple[str, str], List[str]] = defaultdict(list)
    for state, following in moves.items():
        named = isinstance(following, Mapping)
        ways = following.items() if named else ((None, end) for end in following)
        for way, end in ways:
            edges[state.value, end.value] += [way.value] if way else []
    first, last = next(iter(moves)), [s for s in moves if not moves[s]]
    lines = [LOOK, f'    "" -> "{first.value}"']
    lines += [f'    "{state.value}" [peripheries=2]' for state in last]
    lines += [
        f'    "{start}" -> "{end}" [label="{chr(10).join(ways)}"]'
        for (start, end), ways in edges.items()
    ]
    return "digraph {" + "\n".join(lines) + "\n}"


class States(Directive):
    """A diagram of the table that is named."""

    required_arguments = 1

    def run(self) -> List[nodes.Node]:
        module, _, table = self.arguments[0].rpartition(".")
        graph = drawing(getattr(import_module(module), table))
        drawn = subprocess.run(
            ["dot", "-Tsvg"], input=graph, capture_output=True, text=True, check=True
        )
        # In the page itself, where it gets the colours of the theme.
        svg = drawn.stdout[drawn.stdout.index("<svg") :]
        html = f'<div class="states">{svg}</div>'
        return [nodes.raw("", html, format="html")]


def setup(app: Sphinx) -> None:
    app.add_directive("states", States)

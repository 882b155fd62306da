"""``celery linepool check``: plays every scenario against the user's own command."""

from __future__ import annotations

import fnmatch
import sys
from typing import Any, List, Tuple

import click

from . import report
from .command import ForCommand, boot_timeout, company_of, for_child, options_of
from .company import ECHO
from .runner import Result, play_all
from .scenario import Scenario
from .scenarios import ALL


@click.command(cls=ForCommand)
@click.option("--list", "list_", is_flag=True, help="Show the scenarios; play none.")
@click.option(
    "--only",
    multiple=True,
    metavar="NAME",
    help="A scenario, or several as a pattern such as 'eof*'.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document at the end.")
@click.option(
    "--task",
    default=ECHO,
    show_default=True,
    help="A harmless task, called without arguments or with odd ones.",
)
@click.option(
    "--timeout",
    default=10.0,
    show_default=True,
    type=click.FloatRange(min=0, min_open=True),
    help="Seconds until a line or an end that is waited for.",
)
@boot_timeout
@for_child
def check(
    list_: bool,
    only: Tuple[str, ...],
    as_json: bool,
    command: Tuple[str, ...],
    **options: Any,
) -> None:
    """Play the rules of the protocol against a child.

    Exit code: 0 if no MUST and no SHOULD failed; 1 if one did; 2 if the child cannot be
    started.
    """
    rows = _chosen(only)
    if list_:
        return report.tell_list(rows)
    with company_of(options_of(command, **options)) as company:
        results = play_all(company, rows, _silent if as_json else report.tell)
    if as_json:
        click.echo(report.document(company, results))
    else:
        report.tell_rest(results)
    sys.exit(report.exit_code(results))


def _chosen(only: Tuple[str, ...]) -> List[Scenario]:
    for pattern in only:
        if not any(fnmatch.fnmatchcase(row.id, pattern) for row in ALL):
            raise click.UsageError(f"there is no scenario {pattern!r}; see --list")
    return [
        row
        for row in ALL
        if not only or any(fnmatch.fnmatchcase(row.id, pattern) for pattern in only)
    ]


def _silent(result: Result) -> None:
    """The document has it."""

"""What a run of scenarios looks like: lines for people, a document for programs."""

from __future__ import annotations

import json
from typing import Any, Dict, List, Sequence

import click

from .company import Company
from .runner import Outcome, Result
from .scenario import Level, Scenario

COLORS = {Outcome.PASSED: "green", Outcome.FAILED: "red", Outcome.UNTRIED: "yellow"}
#: Why so much may be left out.
HINT = """
Some scenarios need a check task, see section 10 of docs/protocol.md. A helper library
loads them from the folder LINEPOOL_CHECK; a child without one may serve them."""


def exit_code(results: Sequence[Result]) -> int:
    """1 if a rule is broken that must or should be followed."""
    failed = (r for r in results if r.outcome is Outcome.FAILED)
    return int(any(r.scenario.level is not Level.MAY for r in failed))


def tell(result: Result) -> None:
    """One scenario, as soon as it was played."""
    row = result.scenario
    outcome = click.style(f"{result.outcome.value:9}", fg=COLORS[result.outcome])
    head = f"{row.id:27} {row.level.value:6}  {outcome} {result.seconds:7.2f} s"
    why = result.reason or "; ".join(result.notes)
    click.echo(f"{head}  {why}" if why else head)
    if result.outcome is Outcome.FAILED:
        parts = {
            f"rule {row.rule}": row.why,
            "expected": result.expected,
            "read": result.read,
            "written": result.written,
            "stderr": result.stderr,
            "mend": result.mend,
        }
        for name, text in parts.items():
            for number, line in enumerate(text.splitlines()):
                click.echo(f"    {'' if number else name:9} {line}")


def matrix(results: Sequence[Result]) -> Dict[str, Dict[str, int]]:
    """How many of each level went how."""
    return {
        level.value: {
            outcome.value.lower(): sum(
                (r.scenario.level, r.outcome) == (level, outcome) for r in results
            )
            for outcome in Outcome
        }
        for level in Level
    }


def tell_rest(results: Sequence[Result]) -> None:
    """What is to be said at the end."""
    if any(result.reason.startswith("it does not serve") for result in results):
        click.echo(HINT)
    untold = [result for result in results if not result.told]
    if untold:
        click.echo(f"{len(untold)} scenarios not tried: {untold[0].reason}")
    click.echo(f"\n{'':8}" + "".join(f"{outcome.value:>11}" for outcome in Outcome))
    for level, counts in matrix(results).items():
        click.echo(f"{level:8}" + "".join(f"{n:>11}" for n in counts.values()))


def tell_list(rows: Sequence[Scenario]) -> None:
    for row in rows:
        click.echo(f"{row.id:27} {row.level.value:6}  {row.rule:4}  {row.why}")


def document(company: Company, results: Sequence[Result]) -> str:
    """All of it, for ``--json``."""
    whole = {
        "command": company.options.command,
        "language": company.language,
        "protocol": 1 if company.hello is None else 2,
        "hello": json.loads(company.hello_line) if company.hello_line else None,
        "scenarios": [_entry(result) for result in results],
        "summary": matrix(results),
        "exit_code": exit_code(results),
    }
    return json.dumps(whole, indent=2)


def _entry(result: Result) -> Dict[str, Any]:
    row = result.scenario
    names: List[str] = ["reason", "expected", "read", "written", "stderr", "mend"]
    told = {name: getattr(result, name) for name in names if getattr(result, name)}
    return {
        "id": row.id,
        "level": row.level.value,
        "rule": row.rule,
        "why": row.why,
        "outcome": result.outcome.value.lower(),
        "seconds": round(result.seconds, 3),
        **({"notes": result.notes} if result.notes else {}),
        **told,
    }

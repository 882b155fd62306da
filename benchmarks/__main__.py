"""`python -m benchmarks`: every contender side by side, and what came of it."""

from __future__ import annotations

import json
import os
import platform
import signal
import sys
import time
from pathlib import Path
from typing import Any, Dict, Tuple

import celery
import click
import psutil

from .contenders import Case, case_of
from .measure import measure
from .page import Results, page, table
from .rows import ROWS, Row
from .site import HOME, Site

#: Tasks that no scale goes below: of fewer there is no rate.
FEWEST = 8


@click.command()
@click.option("--only", multiple=True, help="Names of rows; all without it.")
@click.option("--rounds", default=5, show_default=True, help="Rounds of each row.")
@click.option("--scale", default=1.0, help="Times the number of tasks of each row.")
@click.option(
    "--also",
    multiple=True,
    help="Another contender of each row that has linepool, such as '+stderr=inherit'.",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=HOME / "docs" / "benchmarks",
    help="Folder for what came of it; keeps what it has of other rows.",
)
def main(
    only: Tuple[str, ...], rounds: int, scale: float, also: Tuple[str, ...], out: Path
) -> None:
    """Run every contender of every row in turns, and write down the ratios."""
    try:
        from .plots import draw
    except ImportError as exc:
        raise click.ClickException(f"{exc}: pip install -e '.[test,benchmarks]'")
    unknown = set(only) - {row.name for row in ROWS}
    if unknown:
        names = ", ".join(row.name for row in ROWS)
        raise click.UsageError(f"no row {', '.join(unknown)}; there are {names}")
    out.mkdir(parents=True, exist_ok=True)
    path = out / "figures.json"
    figures = json.loads(path.read_text()) if path.exists() else {}
    # Whoever ends it ends the servers and workers as well.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    site, failed = Site(), []
    try:
        for row in ROWS:
            if only and row.name not in only:
                continue
            click.echo(f"\n{row.title} ({row.name})")
            try:
                figures[row.name] = figures_of(row, rounds, scale, also, site)
            except RuntimeError as exc:
                failed.append(row.name)
                click.echo(exc, err=True)
                continue
            click.echo("\n".join(table(figures[row.name]["found"], row.probe)))
            # After each row: who interrupts it keeps the others.
            path.write_text(json.dumps(figures, indent=1) + "\n")
            (out / "README.md").write_text(page(figures, draw(figures, out)))
    finally:
        site.close()
    if failed:
        raise click.ClickException(f"not measured: {', '.join(failed)}")


def figures_of(
    row: Row, rounds: int, scale: float, also: Tuple[str, ...], site: Site
) -> Dict[str, Any]:
    """What was found, and what the machine was like meanwhile."""
    before, begin = psutil.cpu_times(), time.monotonic()
    found = run(row, rounds, scale, also, site)
    after, cores = psutil.cpu_times(), os.cpu_count() or 1
    stolen = (after.steal - before.steal) / ((time.monotonic() - begin) * cores)
    about = {
        "rounds": rounds,
        "scale": scale,
        "cores": cores,
        "load average": round(os.getloadavg()[0], 1),
        "stolen by other machines": f"{100 * stolen:.0f} %",
        "Celery": celery.__version__,
        "Python": platform.python_version(),
    }
    return {"about": about, "found": found}


def run(
    row: Row, rounds: int, scale: float, also: Tuple[str, ...], site: Site
) -> Results:
    """In turns: A B C A B C. What disturbs one round disturbs all of it."""
    more = [f"{row.contenders[0]} {words}" for words in also]
    cases = {
        who: scaled_case(row, who, scale)
        for who in (*row.contenders, *more)
        if who in row.contenders or who.startswith("linepool")
    }
    if row.load is not None:
        pace = row.load * min(measure(case, site)["rate"] for case in cases.values())
        for case in cases.values():
            case.pace = pace
    results: Results = {who: [] for who in cases}
    for _ in range(rounds):
        for who, case in cases.items():
            results[who].append(row.probe.run(case, site))
    return results


def scaled_case(row: Row, who: str, scale: float) -> Case:
    case = case_of(who, **row.case)
    tasks = row.fewer.get(who, case.tasks)
    case.tasks = max(min(tasks, FEWEST), int(tasks * scale))
    return case


if __name__ == "__main__":
    main()

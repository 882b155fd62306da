"""`python -m benchmarks`: every contender side by side, and the tables of it."""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple

import celery
import click

from .measure import HERE, Case, Found, measure
from .rows import ROWS, Row

sys.path.insert(0, str(HERE.parent / "tests"))
from localprocess import Servers  # noqa: E402  (the servers of the tests)

Results = Dict[str, List[Found]]


@click.command()
@click.option("--only", multiple=True, help="Names of rows; all without it.")
@click.option("--rounds", default=5, show_default=True, help="Rounds of each row.")
@click.option("--scale", default=1.0, help="Times the number of tasks of each row.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=HERE.parent / "docs" / "benchmarks",
    help="Folder for README.md and figures.json.",
)
def main(only: Tuple[str, ...], rounds: int, scale: float, out: Path) -> None:
    """Run every contender of every row in turns, and write down the ratios."""
    rows = [row for row in ROWS if not only or row.name in only]
    found: Dict[str, Results] = {}
    with ExitStack() as stack:
        urls = stack.enter_context(servers())
        for row in rows:
            click.echo(f"\n{row.title}")
            found[row.name] = run(row, rounds, scale, urls)
            click.echo("\n".join(table(found[row.name])))
    out.mkdir(parents=True, exist_ok=True)
    raw = {
        name: {who: [asdict(f) for f in all_] for who, all_ in results.items()}
        for name, results in found.items()
    }
    (out / "figures.json").write_text(json.dumps(raw, indent=1) + "\n")
    (out / "README.md").write_text(page(rows, found, rounds))


@contextmanager
def servers() -> Iterator[Dict[str, str]]:
    """A Redis and a RabbitMQ of our own, and the work behind HTTP."""
    with tempfile.TemporaryDirectory() as folder:

        def make_folder(kind: str) -> Path:
            return Path(tempfile.mkdtemp(prefix=kind, dir=folder))

        running = Servers(make_folder)
        http = subprocess.Popen(
            ["node", str(HERE / "children" / "http.cjs")],
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert http.stdout is not None
            redis, rabbitmq = running.shared("redis"), running.shared("rabbitmq")
            yield {
                "redis": redis.lease().url,
                "results": redis.lease().url,
                "rabbitmq": rabbitmq.lease().url,
                "http": f"http://127.0.0.1:{http.stdout.readline().strip()}/",
            }
        finally:
            http.kill()
            http.communicate()
            running.close()


def run(row: Row, rounds: int, scale: float, urls: Dict[str, str]) -> Results:
    """In turns: A B C A B C. What disturbs one round disturbs all of it."""
    results: Results = {who: [] for who in row.contenders}
    for _ in range(rounds):
        for who in row.contenders:
            results[who].append(measure(case_of(row, who, scale, urls)))
    return results


def case_of(row: Row, who: str, scale: float, urls: Dict[str, str]) -> Case:
    contender, _, inflight = who.partition(" ")
    backend: Optional[str] = urls["results"] if row.results else None
    case = Case(contender, urls[row.broker], backend, **row.case)
    case.tasks = int(row.fewer.get(who, case.tasks) * scale)
    case.url = urls["http"]
    if inflight:
        case.settings = {"linepool_inflight": case.concurrency}
        case.concurrency = 1
    return case


def table(results: Results) -> List[str]:
    """Markdown: the median of each, and what the first one is in times of it."""
    lines = [
        "| | tasks/s | first / this | lowest to highest | CPU µs/task | Python MiB | "
        "children MiB |",
        "|---|---|---|---|---|---|---|",
    ]
    first = next(iter(results.values()))
    for who, all_ in results.items():
        ratios = [a.rate / b.rate for a, b in zip(first, all_)]
        cells: List[Any] = [
            who,
            f"{median(f.rate for f in all_):.0f}",
            f"{statistics.median(ratios):.2f}",
            f"{min(ratios):.2f} to {max(ratios):.2f}",
            f"{1e6 * median(f.cpu for f in all_):.0f}",
            f"{median(f.worker_pss for f in all_):.0f}",
            f"{median(f.children_pss for f in all_):.0f}",
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines


def median(values: Iterator[float]) -> float:
    return statistics.median(values)


def page(rows: List[Row], found: Dict[str, Results], rounds: int) -> str:
    parts = [(HERE / "head.md").read_text().strip()]
    versions = f"Celery {celery.__version__}, Python {platform.python_version()}"
    parts.append(f"{versions}, {rounds} rounds; medians.")
    for row in rows:
        parts += [f"## {row.title}", "\n".join(table(found[row.name]))]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    main()

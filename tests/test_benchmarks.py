"""The benchmarks run, and what they are there to show holds with a wide margin.

Only ratios, of contenders that ran one after the other.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.__main__ import page, table  # noqa: E402
from benchmarks.measure import Case, Found, measure  # noqa: E402
from benchmarks.rows import ROWS, Row  # noqa: E402

pytestmark = pytest.mark.newest_celery


@pytest.fixture
def urls(servers: Any) -> Iterator[dict[str, str]]:
    leases = {kind: servers.shared(kind).lease() for kind in ("redis", "rabbitmq")}
    yield {kind: lease.url for kind, lease in leases.items()}
    for lease in leases.values():
        lease.release()


@pytest.mark.timeout(400)
def test_a_process_per_task_is_many_times_slower(urls: dict[str, str]) -> None:
    warm = measure(Case("linepool", urls["redis"], tasks=2000, child="ruby"))
    cold = measure(Case("process", urls["redis"], tasks=40, child="ruby"))
    assert warm.rate > 20 * cold.rate
    assert warm.cpu < cold.cpu / 20


@pytest.mark.timeout(400)
def test_one_child_with_many_tasks_needs_little_memory(urls: dict[str, str]) -> None:
    work: dict[str, Any] = {"args": [50], "tasks": 600, "child": "node"}
    settings = {"linepool_inflight": 16}
    one = measure(
        Case("linepool", urls["rabbitmq"], concurrency=1, settings=settings, **work)
    )
    many = measure(Case("linepool", urls["rabbitmq"], concurrency=16, **work))
    assert one.rate > 0.7 * many.rate
    # Of 16 they would be 16 times as much, but for what processes share.
    assert one.children_pss < 0.6 * many.children_pss


@pytest.mark.timeout(400)
def test_the_worker_needs_less_memory_than_processes(urls: dict[str, str]) -> None:
    both = [
        measure(Case(who, urls["redis"], concurrency=8, tasks=800))
        for who in ("linepool", "prefork")
    ]
    assert both[0].worker_pss < 0.5 * both[1].worker_pss


def test_a_table_compares_with_the_first_round_by_round() -> None:
    found = {
        "linepool": [Found(100, 0.1, 10, 20), Found(300, 0.2, 10, 20)],
        "other": [Found(50, 0.3, 30, 40), Found(100, 0.5, 30, 40)],
    }
    head, _, ours, theirs = table(found)
    assert [cell.strip() for cell in theirs.split("|")[1:-1]] == [
        *("other", "75", "2.50", "2.00 to 3.00", "400000", "30", "40")
    ]
    assert ours.split("|")[3].strip() == "1.00"
    row = Row("name", "A title", ("linepool", "other"))
    assert f"## A title\n\n{head}" in page([row], {"name": found}, 2)


def test_rows_have_names_of_their_own() -> None:
    names = [row.name for row in ROWS]
    assert len(set(names)) == len(names)
    assert all(row.contenders[0].startswith("linepool") for row in ROWS)

"""The benchmarks run, and what they are there to show holds with a wide margin.

Only ratios, of contenders that ran one after the other; never of times that one wait of
a busy machine decides.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks.contenders import CHILDREN, CONTENDERS, Case, case_of
from benchmarks.growth import growth
from benchmarks.latency import added, latency
from benchmarks.measure import RATE, Found, measure
from benchmarks.page import page, table
from benchmarks.parts import TRIPS, round_trips
from benchmarks.recovery import recovery
from benchmarks.rows import FAST, ROWS, halves
from benchmarks.site import Site
from benchmarks.workers import together

pytestmark = [pytest.mark.newest_celery, pytest.mark.timeout(400)]


@pytest.fixture
def site(servers: Any) -> Iterator[Site]:
    site = Site(servers)
    yield site
    site.close()


def of(site: Site, contender: str, **situation: Any) -> Found:
    return measure(case_of(contender, **situation), site)


def test_a_process_per_task_is_many_times_slower(site: Site) -> None:
    ruby: dict[str, Any] = {"broker": "redis", "child": "ruby"}
    warm = of(site, "linepool", tasks=2000, **ruby)
    cold = of(site, "process", tasks=40, **ruby)
    assert warm["rate"] > 20 * cold["rate"]
    assert warm["cpu"] < cold["cpu"] / 20


def test_rails_by_every_way(site: Site) -> None:
    rails: dict[str, Any] = {"child": "rails", "args": [5], "concurrency": 2}
    cold = of(site, "process", broker="redis", tasks=8, **rails)
    for contender in (
        "linepool",
        "linepool concurrency=1 +inflight=2",
        "http",
        "sidekiq",
    ):
        warm = of(site, contender, broker="redis", tasks=200, **rails)
        assert warm["rate"] > 10 * cold["rate"], contender
        assert warm["cpu"] < cold["cpu"] / 20, contender


def test_one_child_with_many_tasks_needs_little_memory(site: Site) -> None:
    work: dict[str, Any] = {"args": [50], "tasks": 600, "child": "node"}
    one = of(site, "linepool concurrency=1 +inflight=16", **work)
    many = of(site, "linepool concurrency=16", **work)
    assert one["rate"] > 0.7 * many["rate"]
    # Of 16 they would be 16 times as much, but for what processes share.
    assert one["children_pss"] < 0.6 * many["children_pss"]


def test_the_worker_needs_less_memory_than_processes(site: Site) -> None:
    ours, theirs = (
        of(site, who, broker="redis", concurrency=8, tasks=800)
        for who in ("linepool", "prefork")
    )
    assert ours["worker_pss"] < 0.5 * theirs["worker_pss"]


def test_on_redis_it_costs_less_than_threads(site: Site) -> None:
    ours, theirs = (of(site, w, broker="redis", tasks=1500) for w in (FAST, "threads"))
    # 1.9 on a quiet machine, 2.2 on a busy one (docs/benchmarks).
    assert theirs["cpu"] > 1.15 * ours["cpu"]


def test_on_rabbitmq_it_costs_less_than_what_else_there_is(site: Site) -> None:
    def cheaper(**situation: Any) -> bool:
        ours, threads, prefork = (
            of(site, who, tasks=1500, **situation)["cpu"]
            for who in (FAST, "threads", "prefork")
        )
        # 1.6 and 1.7 on a quiet machine, 1.1 and 1.8 on one that is busy; without the
        # two settings 0.9 and 0.9.
        return bool(threads > 0.95 * ours and prefork > 1.25 * ours)

    # Whatever else the machine does hits one or the other, but not always the same.
    assert any(cheaper() for _ in range(3))
    assert any(cheaper(results="redis") for _ in range(3))


def test_it_is_not_far_from_a_pool_that_does_nothing(site: Site) -> None:
    def found() -> float:
        return of(site, FAST, tasks=1500)["rate"] / of(site, "null", tasks=1500)["rate"]

    # 0.6 (docs/benchmarks); without the two settings 0.3.
    assert any(found() > 0.42 for _ in range(5))


def test_a_second_worker_is_worth_a_core(site: Site) -> None:
    def pays() -> bool:
        two = of(site, halves(4), tasks=2000)
        one = of(site, FAST, tasks=2000)
        return two["rate"] > 1.15 * one["rate"] and two["cpu"] < 1.25 * one["cpu"]

    # 1.6, and 1.0 of the processor time (docs/benchmarks).
    assert any(pays() for _ in range(5))


@pytest.mark.timeout(900)
def test_it_is_no_slower_than_a_server_of_the_same_rails(site: Site) -> None:
    rails: dict[str, Any] = {"child": "rails", "args": [5], "tasks": 300}

    def rates() -> tuple[float, float]:
        ours, theirs = (of(site, who, **rails)["rate"] for who in ("linepool", "http"))
        return ours / theirs, min(ours, theirs)

    def slowest(pace: float) -> float:
        ours, theirs = (
            latency(case_of(who, pace=pace, **rails), site)["p99"]
            for who in ("linepool", "http")
        )
        return ours / theirs

    # 1.3 and 0.7 (docs/benchmarks).
    found = [rates() for _ in range(3)]
    assert max(ratio for ratio, _ in found) > 0.95
    pace = 0.6 * min(rate for _, rate in found)
    assert any(slowest(pace) < 1.25 for _ in range(4))


def test_its_memory_does_not_grow_with_the_tasks(site: Site) -> None:
    found = growth(case_of(FAST, tasks=40_000), site)
    # 0.01 to 0.05, and 0.001 of a million (docs/benchmarks). To keep 150 bytes of each
    # task would be 0.1.
    assert found["growth"] < 0.1


@pytest.mark.parametrize("who", ["linepool", FAST])
def test_a_slow_result_backend_holds_up_little(site: Site, who: str) -> None:
    def found() -> float:
        # It raises where a ping is not answered meanwhile.
        slow, quick = (
            of(
                site,
                f"{who} results=slow:{ms}",
                concurrency=16,
                tasks=1500,
                ping=True,
            )
            for ms in (5, 0.2)
        )
        return slow["rate"] / quick["rate"]

    # 1.0, and 0.8 (docs/benchmarks). One call after the other would be 0.1.
    assert any(found() > 0.6 for _ in range(3))


def test_many_children_cost_no_more_than_few(site: Site) -> None:
    def found() -> float:
        many = of(site, "linepool concurrency=64", tasks=1500)
        return many["rate"] / of(site, "linepool", tasks=1500)["rate"]

    # 0.9 to 1.07 (docs/benchmarks). A look at each child for each task would be 0.2.
    assert any(found() > 0.7 for _ in range(3))


def test_a_round_trip_is_not_much_more_than_a_bare_one(site: Site) -> None:
    def found() -> float:
        ours, bare = (
            round_trips(case_of(who, tasks=3000, apart=False), site)["rate"]
            for who in ("child", "bare")
        )
        return ours / bare

    # 0.55 (docs/benchmarks), of nearly nothing: the kernel's part is the same for both.
    assert any(found() > 0.4 for _ in range(5))


def test_a_killed_child_is_replaced_about_as_fast_as_it_boots(site: Site) -> None:
    case = case_of("linepool child=ruby concurrency=1 broker=redis", tasks=3)
    found = recovery(case, site)
    # A wait of ours, such as a back-off of a second, would be ten boots.
    assert found["recovery"] < 10 * found["boot"]


@pytest.mark.parametrize("contender", ["linepool", "threads", "solo"])
def test_what_a_pool_adds_is_noted_of_each_task(site: Site, contender: str) -> None:
    asleep = 0.2
    args = [1000 * asleep]
    case = case_of(contender, tasks=20, pace=4, broker="redis", args=args)
    found = added(case, site)
    assert 0 < found["before"] and 0 < found["after"]
    # What the child sleeps is not the pool's.
    assert found["before"] < found["p50"] < asleep
    assert found["p50"] <= found["p99"]


def test_what_the_pool_adds_is_not_far_from_what_threads_add(site: Site) -> None:
    def found() -> float:
        ours, theirs = (
            added(case_of(who, tasks=600, pace=200), site)["p50"]
            for who in (FAST, "threads")
        )
        return ours / theirs

    # 0.8 to 1.7, the less the more there is to do (docs/benchmarks). A wait for a
    # thread that does not give up the interpreter would be 10.
    assert any(found() < 2.5 for _ in range(3))


def test_a_contender_is_named_with_its_options() -> None:
    case = case_of("linepool +inflight=4 +stderr=inherit workers=2", concurrency=8)
    assert case == Case(
        "linepool",
        settings={"linepool_inflight": 4, "linepool_stderr": "inherit"},
        workers=2,
        concurrency=8,
    )


def test_several_workers_count_together() -> None:
    first = [(1.0, 1), (3.0, 5)]
    assert together([first, [(2.0, 2)]]) == [(1.0, 1), (2.0, 3), (3.0, 7)]


def found(rate: float, cpu: float) -> Found:
    return {"rate": rate, "cpu": cpu, "worker_pss": 30, "children_pss": 40}


def test_a_table_compares_with_the_first_round_by_round() -> None:
    results = {
        "linepool": [found(100, 0.1), found(300, 0.2)],
        "other": [found(50, 0.3), found(100, 0.5)],
    }
    head, _, ours, theirs = table(results, RATE)
    assert [cell.strip() for cell in theirs.split("|")[1:-1]] == [
        *("other", "75", "400000", "30", "40"),
        *("2.50 (2.00 to 3.00)", "2.75 (2.50 to 3.00)"),
    ]
    assert "| 1.00 | 1.00 |" in ours
    assert "times" not in head.replace("times the rate | times less CPU", "")
    row = ROWS[0]
    text = page({row.name: {"about": {"rounds": 2}, "found": results}})
    assert f"## {row.title}\n\n{head}" in text
    assert f"`{row.name}`; rounds 2." in text
    assert re.search(rf"Not measured yet: .*`{ROWS[1].name}`", text)


def test_what_we_are_with_other_settings_is_compared_as_well() -> None:
    results = {
        "linepool": [found(100, 0.2)],
        "linepool workers=2": [found(150, 0.2)],
        "other": [found(50, 0.3)],
        "linepool +inflight=2": [found(200, 0.1)],
    }
    head, _, *_, theirs, fast = table(results, RATE)
    assert "| times the rate | times less CPU " in head
    assert "| times the rate +inflight=2 | times less CPU +inflight=2 |" in head
    assert "workers=2" not in head
    assert theirs.endswith("| 2.00 | 1.50 | 4.00 | 3.00 |")
    assert fast.endswith("| 0.50 | 0.50 | 1.00 | 1.00 |")


def test_each_row_can_be_run() -> None:
    names = [row.name for row in ROWS]
    assert len(set(names)) == len(names)
    for row in ROWS:
        assert set(row.fewer) <= set(row.contenders)
        for who in row.contenders:
            case = case_of(who, **row.case)
            assert case.child in CHILDREN
            assert case.contender in CONTENDERS or row.probe is TRIPS

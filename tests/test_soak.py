"""The soak runs, accounts for what it did, and tells what grows from what does not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HOME = Path(__file__).parent.parent
sys.path.insert(0, str(HOME))
from benchmarks.soak import inside  # noqa: E402
from benchmarks.soak.lines import LINES, judge, slope  # noqa: E402

pytestmark = pytest.mark.newest_celery


@pytest.mark.timeout(400)
def test_a_short_soak(tmp_path: Path) -> None:
    """Too short to be flat, and long enough to lose something."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.soak", "--minutes", "0.4"),
            *("--faulty", "0.05", "--every", "1", "--out", str(tmp_path)),
        ],
        cwd=HOME,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=380,
    )
    assert done.returncode in (0, 3), done.stdout
    assert ("GREW" in done.stdout) == (done.returncode == 3), done.stdout
    found = json.loads((tmp_path / "soak.json").read_text())
    assert found["broken"] == []
    assert found["counts"]["ends"]["SUCCESS"] > found["counts"]["sent"] / 2 > 0
    assert sum(found["counts"]["ends"].values()) == found["counts"]["sent"]
    assert found["counts"]["faults"] and found["troubles"]
    assert "<svg" in (tmp_path / "soak.svg").read_text()
    page = (tmp_path / "soak.md").read_text()
    for name, line in LINES.items():
        assert f"| {line.title} |" in page
        assert found["lines"][name]["level"] > 0


KEEPS = """
import sys
sys.path.append(sys.argv[1])
from benchmarks.soak import inside
inside.listen(sys.argv[2])
kept = []
for line in sys.stdin:
    exec(line)
    print("done", flush=True)
"""


def test_what_a_process_keeps_is_seen_and_what_it_drops_is_not(tmp_path: Path) -> None:
    path = tmp_path / "inside"
    with subprocess.Popen(
        [sys.executable, "-c", KEEPS, str(HOME), str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin and process.stdout

        def after(statement: str) -> dict[str, Any]:
            print(statement, file=process.stdin, flush=True)
            assert process.stdout.readline() == "done\n"
            return inside.ask(path)

        after("pass")
        before = after("pass")
        small = after("kept += [bytes(100 + n % 2) for n in range(20_000)]")
        assert small["blocks"] - before["blocks"] == pytest.approx(20_000, abs=2_000)
        large = after("kept += [bytes(10_000) for _ in range(1_000)]")
        assert large["malloc_mib"] - small["malloc_mib"] == pytest.approx(9.6, abs=0.5)
        after("kept.clear(); kept = [[] for _ in range(20_000)]")
        dropped = after("for one in kept: one.append(one)\n"[:-1])
        dropped = after("one = None; kept = []")
        assert dropped["blocks"] == pytest.approx(before["blocks"], abs=2_000)
        assert dropped["malloc_mib"] == pytest.approx(before["malloc_mib"], abs=0.5)
        process.stdin.close()


def samples(**changed: Any) -> list[dict[str, Any]]:
    """A hundred looks at a worker of which nothing grows but what is said."""
    level = {**dict.fromkeys(LINES, 50.0), "p50_ms": None}
    return [
        {**level, "seconds": n, **{name: by(n) for name, by in changed.items()}}
        for n in range(100)
    ]


def grows(**changed: Any) -> list[str]:
    return [
        name for name, line in judge(samples(**changed)).items() if not line["flat"]
    ]


def test_what_grows_is_found() -> None:
    assert grows() == []
    assert grows(memory_mib=lambda n: 50 + n / 5) == ["memory_mib"]
    # Steps of the allocators are theirs.
    assert grows(memory_mib=lambda n: 66 + n // 25) == []
    assert grows(blocks=lambda n: 400_000 + 200 * n) == ["blocks"]
    assert grows(malloc_mib=lambda n: 20 + n / 50) == ["malloc_mib"]
    assert grows(fds=lambda n: 50 + n // 10, threads=lambda n: n) == ["fds", "threads"]
    # What belongs to the machine is shown, and no more.
    assert grows(p99_ms=lambda n: 50.0 * n) == []


def test_a_warm_up_and_moments_are_no_growth() -> None:
    assert grows(memory_mib=lambda n: min(n, 20)) == []
    assert grows(processes=lambda n: 200 if n % 10 == 0 else 8) == []


def test_the_slope_is_that_of_most() -> None:
    xs = range(20)
    assert slope(xs, [2 * x for x in xs]) == 2
    assert slope(xs, [2 * x if x % 7 else 1000 for x in xs]) == pytest.approx(
        2, abs=0.2
    )

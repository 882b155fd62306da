"""What is looked at during a soak, and whether it stays as it was."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Sequence

import psutil

#: The part of a soak that is thrown away as warm-up: Python fills its pools then.
WARM_UP = 0.25


@dataclass(frozen=True)
class Line:
    """Something that must not grow.

    A line may grow, from one end to the other, by a part of its level or by so much,
    whichever is more.
    """

    title: str
    part: float
    by: float
    #: Whether it is only shown: what is asked of it depends on the machine.
    shown: bool = False


# What the system counts rises with the worst moment so far; what is alive does not, and
# so may grow by little: see `inside`.
LINES = {
    "memory_mib": Line("memory of the worker, MiB", 0.1, 2.0),
    "blocks": Line("live objects of the worker, blocks", 0.02, 1000.0),
    "malloc_mib": Line("live memory outside of them, MiB", 0.03, 0.3),
    "fds": Line("descriptors of the worker", 0.05, 3.0),
    "threads": Line("threads of the worker", 0.05, 2.0),
    "processes": Line("processes under the worker", 0.05, 2.0),
    "p50_ms": Line("from sent to stored, median, ms", 0.5, 50.0, shown=True),
    "p99_ms": Line("from sent to stored, 99th of 100, ms", 1.0, 500.0, shown=True),
}


def sample(pid: int, began: float, latencies: List[float]) -> Dict[str, Any]:
    """One look at the worker."""
    worker = psutil.Process(pid)
    found: Dict[str, Any] = {
        "seconds": round(time.monotonic() - began, 1),
        "memory_mib": round(worker.memory_full_info().uss / 2**20, 2),
        "fds": worker.num_fds(),
        "threads": worker.num_threads(),
        "processes": len(worker.children(recursive=True)),
        "p50_ms": None,
        "p99_ms": None,
    }
    if latencies:
        ordered = sorted(latencies)
        found["p50_ms"] = round(1000 * ordered[len(ordered) // 2], 1)
        found["p99_ms"] = round(1000 * ordered[int(len(ordered) * 0.99)], 1)
    return found


def slope(xs: Sequence[float], ys: Sequence[float]) -> float:
    """The median of the slopes between any two points, which outliers do not move."""
    points = list(zip(xs, ys))
    slopes = [
        (y2 - y1) / (x2 - x1)
        for i, (x1, y1) in enumerate(points)
        for x2, y2 in points[i + 1 :]
        if x2 != x1
    ]
    return statistics.median(slopes) if slopes else 0.0


def judge(samples: List[Dict[str, Any]]) -> Dict[str, Dict[str, Any]]:
    """Of each line: its level, its growth after the warm-up, and what that may be."""
    first = WARM_UP * samples[-1]["seconds"]
    found = {}
    for name, line in LINES.items():
        kept = [s for s in samples if s["seconds"] >= first and s[name] is not None]
        if not kept:
            continue
        xs, ys = [s["seconds"] for s in kept], [s[name] for s in kept]
        level = statistics.median(ys)
        growth = slope(xs, ys) * (xs[-1] - xs[0])
        allowed = max(line.part * level, line.by)
        found[name] = {
            "level": round(level, 2),
            "growth": round(growth, 2),
            "allowed": round(allowed, 2),
            "flat": line.shown or growth <= allowed,
        }
    return found


def plot(samples: List[Dict[str, Any]], path: Path) -> None:
    """All lines under one another, as SVG."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "soak", "svg.fonttype": "none"})
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        len(LINES), sharex=True, figsize=(9, 1.6 * len(LINES)), layout="constrained"
    )
    for (name, line), axis in zip(LINES.items(), axes):
        kept = [s for s in samples if s[name] is not None]
        axis.plot([s["seconds"] / 60 for s in kept], [s[name] for s in kept], lw=1)
        axis.set_title(line.title, fontsize=9, loc="left")
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    axes[-1].set_xlabel("minutes")
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)

"""The figures as pictures: a table of plots, each drawn from figures.json."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot  # noqa: E402

from .contenders import case_of  # noqa: E402
from .page import ratios, variants  # noqa: E402
from .rows import ROWS, Row  # noqa: E402

# The same figures give the same files.
matplotlib.rcParams["svg.hashsalt"] = "benchmarks"
matplotlib.rcParams["svg.fonttype"] = "none"

Figures = Dict[str, Any]


def draw(figures: Figures, out: Path) -> List[str]:
    """Write those for which there are figures; their names."""
    names = []
    for name, plot in PLOTS.items():
        figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
        if plot(figures, axes):
            figure.savefig(out / f"{name}.svg", metadata={"Date": None})
            names.append(f"{name}.svg")
        pyplot.close(figure)
    return names


def _measured(figures: Figures) -> List[Row]:
    return [row for row in ROWS if row.name in figures]


def _ratios(figures: Figures, axes: Any) -> bool:
    """Each comparison as a point with its spread; right of the line the first leads."""
    labels = []
    for row in _measured(figures):
        if not row.probe.compared:
            continue
        _, figure, more = row.probe.compared[0]
        results = figures[row.name]["found"]
        ours = variants(results)
        compared = [ratios(results, figure, more, one) for one in ours]
        for who in results:
            if who in ours:
                continue
            for number, (one, found) in enumerate(zip(ours, compared)):
                values, color = found[who], f"C{number}"
                middle = statistics.median(values)
                spread = [[middle - min(values)], [max(values) - middle]]
                axes.errorbar(middle, len(labels), xerr=spread, fmt="o", color=color)
                labels.append(f"{row.name}: {who}{one[len(ours[0]):]}")
    axes.figure.set_size_inches(8, 1 + 0.22 * len(labels))
    axes.set_yticks(range(len(labels)), labels, fontsize=7)
    axes.set(
        xscale="log", xlabel="times as good as this", title="Against everything else"
    )
    axes.axvline(1, color="grey", linewidth=0.8)
    axes.invert_yaxis()
    return bool(labels)


def _concurrency(figures: Figures, axes: Any) -> bool:
    rows = [r for r in _measured(figures) if r.name.split("-")[0] == "rabbitmq"]
    lines: Dict[str, Dict[int, float]] = {}
    for row in rows:
        for who, all_ in figures[row.name]["found"].items():
            slots = case_of(who, **row.case).concurrency
            rate = statistics.median(found["rate"] for found in all_)
            lines.setdefault(who, {})[slots] = rate
    # Whoever was measured once has no line, and no place on the axis.
    lines = {who: points for who, points in lines.items() if len(points) > 1}
    for who, points in lines.items():
        axes.plot(*zip(*sorted(points.items())), "o-", label=who)
    if not lines:
        return False
    axes.set(xlabel="concurrency", ylabel="no-op tasks/s", ylim=(0, None))
    axes.set_xscale("log", base=2)
    ticks = sorted({slots for points in lines.values() for slots in points})
    axes.set_xticks(ticks, [str(slots) for slots in ticks])
    axes.set_title("No-op tasks, RabbitMQ, results ignored")
    axes.legend()
    return True


def _memory(figures: Figures, axes: Any) -> bool:
    """Of Python, and of the children on top of it."""
    rows = [r for r in _measured(figures) if r.name in ("memory", "inflight", "rails")]
    labels = []
    for row in rows:
        for who, all_ in figures[row.name]["found"].items():
            own = statistics.median(f["worker_pss"] for f in all_)
            others = statistics.median(f["children_pss"] for f in all_)
            axes.barh(len(labels), own, color="tab:blue")
            axes.barh(len(labels), others, left=own, color="tab:orange")
            labels.append(f"{row.name}: {who}")
    axes.set_yticks(range(len(labels)), labels, fontsize=7)
    axes.set(xlabel="MiB: Python (blue), children and servers (orange)", title="Memory")
    axes.invert_yaxis()
    return bool(labels)


def _growth(figures: Figures, axes: Any) -> bool:
    if "million" not in figures:
        return False
    for all_ in figures["million"]["found"].values():
        axes.plot(*zip(*all_[-1]["series"]))
    axes.set(xlabel="tasks done", ylabel="MiB of the worker", ylim=(0, None))
    axes.set_title("Memory of one worker")
    return True


PLOTS: Mapping[str, Callable[[Figures, Any], bool]] = {
    "ratios": _ratios,
    "concurrency": _concurrency,
    "memory": _memory,
    "growth": _growth,
}

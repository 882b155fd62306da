"""The figures as Markdown: `docs/benchmarks/README.md`."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any, Dict, Iterable, List, Sequence

from .contenders import CONTENDERS
from .measure import Found, Probe
from .rows import ROWS, Row

HEAD = Path(__file__).parent / "head.md"
#: What each contender has shown, round by round.
Results = Dict[str, List[Found]]


def ratios(
    results: Results, figure: str, more: bool, one: str
) -> Dict[str, List[float]]:
    """How many times better `one` is than each, round by round."""
    found = {}
    for who, all_ in results.items():
        pairs = [(a[figure], b[figure]) for a, b in zip(results[one], all_)]
        found[who] = [a / b if more else b / a for a, b in pairs]
    return found


def variants(results: Results) -> List[str]:
    """The first contender, and the same with other settings."""
    first = next(iter(results))
    return [who for who in results if who == first or who.startswith(f"{first} +")]


def table(results: Results, probe: Probe) -> List[str]:
    """Markdown: the medians of each, and what the first one is in times of it.

    What the first one is with other settings has columns of its own.
    """
    first, *_ = ours = variants(results)
    compared = probe.compared if len(results) > 1 else ()
    heads = [head for head, _, _ in probe.columns]
    times = []
    for one in ours:
        for head, figure, more in compared:
            heads.append(head + one[len(first) :])
            times.append(ratios(results, figure, more, one))
    lines = [_line(["", *heads]), "|---" * (1 + len(heads)) + "|"]
    for who, all_ in results.items():
        cells = [who]
        for _, figure, factor in probe.columns:
            cells.append(short(factor * statistics.median(f[figure] for f in all_)))
        for found in times:
            cells.append(_spread(found[who]))
        lines.append(_line(cells))
    return lines


def _spread(values: List[float]) -> str:
    middle, low, high = statistics.median(values), min(values), max(values)
    spread = f" ({low:.2f} to {high:.2f})" if low < high else ""
    return f"{middle:.2f}{spread}"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def short(value: float) -> str:
    """Two digits at the least, and no more than are worth reading."""
    return f"{value:.0f}" if abs(value) >= 10 else f"{value:.2g}"


def page(figures: Dict[str, Any], plots: Sequence[str] = ()) -> str:
    """All of it; rows that were not measured yet are named."""
    parts = [HEAD.read_text().strip().replace("CONTENDERS", _contenders())]
    parts += [f"![{Path(name).stem}]({name})" for name in plots]
    parts += [_section(row, figures[row.name]) for row in ROWS if row.name in figures]
    missing = [f"`{row.name}`" for row in ROWS if row.name not in figures]
    if missing:
        parts.append(f"Not measured yet: {', '.join(missing)}.")
    return "\n\n".join(parts) + "\n"


def _contenders() -> str:
    return "\n".join(f"- `{name}`: {c.what}." for name, c in CONTENDERS.items())


def _section(row: Row, figures: Dict[str, Any]) -> str:
    about = figures["about"]
    said = f"`{row.name}`; {', '.join(f'{k} {v}' for k, v in about.items())}."
    aim = f" Aim: {row.aim}." if row.aim else ""
    lines = "\n".join(table(figures["found"], row.probe))
    return f"## {row.title}\n\n{lines}\n\n{said}{aim}"

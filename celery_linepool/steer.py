"""``celery linepool stats|top|reset|scale|pause|resume|dump``: workers in a terminal.

Each asks the workers by remote control, as ``celery inspect`` does. Exit codes: 0; 1 if
a worker refused; 69 if none answered, which is Celery's own; 75 if a reset goes on
after the time that it was waited for.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple, TypeVar, cast

import click
from celery.platforms import EX_UNAVAILABLE

#: States of a child that has booted.
SERVING = ("idle", "busy")
#: Seconds from look to look while a reset is waited for.
BETWEEN_LOOKS = 0.5
F = TypeVar("F", bound=Callable[..., Any])
#: What each worker answered, by its name.
Answers = Dict[str, Any]

#: Of a child, from left to right: heading, width, and how it is said.
COLUMNS: Sequence[Any] = (
    ("PID", 7, lambda child: child["pid"]),
    ("STATE", 9, lambda child: child["state"]),
    ("GEN", 4, lambda child: child["generation"]),
    ("AGE", 7, lambda child: _short(child["age_seconds"])),
    ("MEM", 7, lambda child: f"{child['memory_kib'] / 1024:.0f}M"),
    ("TASKS", 8, lambda child: child["tasks"]),
    ("DOING", 0, lambda child: _doing(child["doing"])),
)


class NoAnswer(click.ClickException):
    exit_code = EX_UNAVAILABLE

    def __init__(self) -> None:
        super().__init__("no worker answered within --timeout")


class StillResetting(click.ClickException):
    exit_code = os.EX_TEMPFAIL

    def __init__(self, worker: str, pool: str, seconds: float) -> None:
        super().__init__(f"{worker}: pool {pool} is still reset after {seconds:g} s")


def for_workers(function: F) -> F:
    """The options that say which workers are asked, and how the answer looks."""
    wrapped: Any = function
    for option in (
        click.option("--json", "as_json", is_flag=True, help="The answers as JSON."),
        click.option(
            "-t", "--timeout", default=2.0, show_default=True, help="In seconds."
        ),
        click.option(
            "-d",
            "--destination",
            default="",
            metavar="NAMES",
            help="Names of workers, with commas; all of them if it is left out.",
        ),
        click.pass_context,
    ):
        wrapped = option(wrapped)
    return cast(F, wrapped)


def ask(
    ctx: click.Context, command: str, destination: str, timeout: float, **arguments: Any
) -> Answers:
    """What the workers answer to a remote control command.

    Raises:
        NoAnswer: nobody did.
    """
    names = [name for name in destination.split(",") if name] or None
    replies = ctx.obj.app.control.broadcast(
        command,
        arguments=arguments,
        destination=names,
        reply=True,
        timeout=timeout,
        # With names it is known when all have answered.
        limit=len(names) if names else None,
    )
    answers = {name: answer for reply in replies for name, answer in reply.items()}
    if not answers:
        raise NoAnswer
    return answers


def tell(ctx: click.Context, answers: Answers, as_json: bool) -> None:
    """Show the answers to a command that changes something, and end accordingly."""
    if as_json:
        click.echo(json.dumps(answers, indent=2))
    else:
        for name, answer in answers.items():
            click.echo(f"{name}: {answer.get('ok') or 'error: ' + answer['error']}")
    ctx.exit(int(any("error" in answer for answer in answers.values())))


# --- commands that change something ---------------------------------------------------


@click.command()
@click.argument("pool", required=False)
@click.option(
    "--wait",
    default=0.0,
    metavar="SECONDS",
    help="Wait until new children serve, and all old ones are gone.",
)
@for_workers
def reset(
    ctx: click.Context, pool: Optional[str], wait: float, as_json: bool, **where: Any
) -> None:
    """Replace the children of POOL, or of all, one by one, losing no task."""
    before = _generations(ask(ctx, "linepool_stats", **where), pool) if wait else {}
    answers = ask(ctx, "linepool_reset", pool=pool, **where)
    if before and not any("error" in answer for answer in answers.values()):
        answers = _until_reset(ctx, before, wait, where)
    tell(ctx, answers, as_json)


def _until_reset(
    ctx: click.Context,
    before: Dict[Tuple[str, str], int],
    seconds: float,
    where: Dict[str, Any],
) -> Answers:
    """What came of a reset in each worker; `before` has the old generations."""
    until = time.monotonic() + seconds
    answers: Answers = {worker: {"ok": "reset"} for worker, _ in before}
    while before:
        time.sleep(BETWEEN_LOOKS)
        stats = ask(ctx, "linepool_stats", **where)
        for (worker, name), old in list(before.items()):
            error = _reset_of(stats, worker, name, old)
            if error is None and time.monotonic() > until:
                raise StillResetting(worker, name, seconds)
            if error:
                answers[worker] = {"error": f"pool {name} was not reset: {error}"}
            if error is not None:
                del before[worker, name]
    return answers


def _generations(stats: Answers, pool: Optional[str]) -> Dict[Tuple[str, str], int]:
    """By worker and pool."""
    return {
        (worker, name): found["generation"]
        for worker, pools in stats.items()
        for name, found in pools.items()
        if "children" in found and pool in (None, name)
    }


def _reset_of(stats: Answers, worker: str, name: str, old: int) -> Optional[str]:
    """Why a pool was not reset; nothing if it was, and None if it is not over."""
    pool = stats.get(worker, {}).get(name)
    if pool is None or pool["generation"] <= old:
        return None
    if pool["reset_error"]:
        return str(pool["reset_error"])
    children = pool["children"]
    new = all(child["generation"] > old for child in children)
    serving = [child for child in children if child["state"] in SERVING]
    return "" if new and len(serving) >= pool["size"] else None


@click.command()
@click.argument("pool")
@click.argument("n", type=click.IntRange(0))
@for_workers
def scale(ctx: click.Context, pool: str, n: int, as_json: bool, **where: Any) -> None:
    """Have N children in POOL."""
    tell(ctx, ask(ctx, "linepool_scale", pool=pool, n=n, **where), as_json)


@click.command()
@click.argument("pool", required=False)
@for_workers
def pause(ctx: click.Context, pool: Optional[str], as_json: bool, **where: Any) -> None:
    """Start no more tasks in POOL, or in all; what runs goes on."""
    tell(ctx, ask(ctx, "linepool_pause", pool=pool, **where), as_json)


@click.command()
@click.argument("pool", required=False)
@for_workers
def resume(
    ctx: click.Context, pool: Optional[str], as_json: bool, **where: Any
) -> None:
    """Start tasks again after a pause."""
    tell(ctx, ask(ctx, "linepool_resume", pool=pool, **where), as_json)


# --- commands that look ---------------------------------------------------------------


@click.command()
@click.argument("pid", type=int)
@for_workers
def dump(ctx: click.Context, pid: int, as_json: bool, **where: Any) -> None:
    """One child: its tasks and its last lines on stderr; its stack, in the log."""
    answers = ask(ctx, "linepool_dump", pid=pid, **where)
    found = {name: said for name, said in answers.items() if "error" not in said}
    if as_json:
        click.echo(json.dumps(found or answers, indent=2))
    for name, child in () if as_json else found.items():
        click.echo(f"{name}, pool {child['pool']}")
        click.echo("\n".join([_headings(), _row(child), *child["stderr"]]))
    if not found:
        raise click.ClickException(f"no worker has a child with the pid {pid}")


@click.command()
@click.option("--ready", is_flag=True, help="End with 1 if a pool has no child.")
@for_workers
def stats(ctx: click.Context, ready: bool, as_json: bool, **where: Any) -> None:
    """Every pool and child, once."""
    answers = ask(ctx, "linepool_stats", **where)
    click.echo(json.dumps(answers, indent=2) if as_json else "\n".join(_page(answers)))
    bad = any("error" in answer for answer in answers.values())
    ctx.exit(int(bad or (ready and not _are_ready(answers))))


def _are_ready(answers: Answers) -> bool:
    """Whether every pool that wants children has one that takes tasks."""
    return all(
        any(child["state"] in SERVING for child in pool["children"])
        for pools in answers.values()
        for pool in pools.values()
        if pool.get("children") is not None and pool["size"]
    )


@click.command()
@click.option("--every", default=2.0, show_default=True, help="Seconds between looks.")
@for_workers
def top(ctx: click.Context, every: float, as_json: bool, **where: Any) -> None:
    """Every pool and child, again and again, until Ctrl-C."""
    while True:
        answers = ask(ctx, "linepool_stats", **where)
        if as_json:
            click.echo(json.dumps(answers))
        else:
            click.echo("\n".join(_fitting(_page(answers))))
        try:
            time.sleep(every)
        except KeyboardInterrupt:
            return


def _fitting(lines: List[str]) -> List[str]:
    """What a terminal has room for, on an empty screen."""
    if not sys.stdout.isatty():
        return lines
    # Not what COLUMNS says, which is that of whoever started us.
    size = os.get_terminal_size(sys.stdout.fileno())
    click.clear()
    return [line[: size.columns - 1] for line in lines[: size.lines - 1]]


def _page(answers: Answers) -> List[str]:
    lines = []
    for worker, pools in sorted(answers.items()):
        if "error" in pools:
            lines += [f"{worker}: {pools['error']}", ""]
            continue
        for name, pool in pools.items():
            if "children" in pool:
                lines += [_headline(worker, name, pool), _headings()]
                lines += [_row(child) for child in pool["children"]]
                lines.append("")
    return lines[:-1]


def _headline(worker: str, name: str, pool: Dict[str, Any]) -> str:
    children = pool["children"]
    busy = sum(child["state"] == "busy" for child in children)
    run, wait = pool["run_seconds"], pool["wait_seconds"]
    parts = [
        f"{worker}, pool {name}: {busy} of {len(children)} busy",
        f"{pool['waiting']} waiting",
        f"{run['count']} done",
        f"run p50 {_short(run['p50'])} p99 {_short(run['p99'])}",
        f"wait p99 {_short(wait['p99'])}",
        f"{sum(pool['restarts'].values())} restarts",
    ]
    if pool["paused"]:
        parts.insert(1, "PAUSED")
    if pool["failed_boots"]:
        parts.insert(1, f"{pool['failed_boots']} BOOTS FAILED")
    return ", ".join(parts)


def _headings() -> str:
    return "  " + "".join(f"{heading:<{width}}" for heading, width, _ in COLUMNS)


def _row(child: Dict[str, Any]) -> str:
    return "  " + "".join(f"{say(child)!s:<{width}}" for _, width, say in COLUMNS)


def _doing(calls: List[Dict[str, Any]]) -> str:
    if not calls:
        return ""
    oldest = max(calls, key=lambda call: float(call["seconds"]))
    more = f" and {len(calls) - 1} more" if len(calls) > 1 else ""
    what = f"{oldest['task']}[{oldest['id']}] for {_short(oldest['seconds'])}"
    return f"{what}{more}"


def _short(seconds: Optional[float]) -> str:
    """A time as few characters say it."""
    if seconds is None:
        return "-"
    if seconds < 1:
        return f"{seconds * 1000:.3g}ms"
    if seconds < 100:
        return f"{seconds:.3g}s"
    minutes, hours = seconds / 60, seconds / 3600
    return f"{minutes:.0f}m" if minutes < 100 else f"{hours:.0f}h"

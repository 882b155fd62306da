"""`python -m benchmarks.soak`: half an hour of every fault, at a low rate.

Exit code 1: a promise was broken. 3: something grew.
"""

from __future__ import annotations

import json
import platform
import random
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Callable, Dict, List

import celery
import click

from . import inside, lines
from .load import HONEST, PYTHON, Load
from .trouble import Trouble

HOME = Path(__file__).parent.parent.parent
sys.path.insert(0, str(HOME / "tests"))
from leaks import LeakGuard  # noqa: E402  (workers and servers of the tests)
from localprocess import Servers, eventually  # noqa: E402
from lone_pool import script  # noqa: E402
from proxy import Proxy  # noqa: E402
from test_faults import FAULTS, LIMITED  # noqa: E402
from workers import WorkerFactory  # noqa: E402

BROKEN, GREW = 1, 3
#: Seconds between two looks at the results.
LOOK = 0.1
#: Looks at the worker during a soak.
SAMPLES = 180
#: Seconds in which the last tasks have to end.
PATIENCE = 120.0
#: A child that was stopped is found by it; no task here takes so long by itself.
LIMIT = 5.0

LATE = {"acks_late": True, "reject_on_worker_lost": True}


def faulty(inflight: int) -> Dict[str, Any]:
    return {"command": [*LIMITED, *script("faulty.pl", inflight)], "size": 1}


POOLS = {
    "one": {"command": list(script("lives.rb")), "size": 2},
    "many": {"command": list(script("lives_many.cjs")), "size": 1, "inflight": 4},
    "original": faulty(0),
    "protocol2": faulty(1),
    "inflight8": {**faulty(8), "inflight": 8},
}
#: At once under way.
SLOTS = 2 + 1 + 4 + 1 + 1 + 8
CONF = {
    "linepool_pools": {n: {**p, "tasks": [f"{n}.*"]} for n, p in POOLS.items()},
    "linepool_timeout": LIMIT,
    "linepool_stop_timeout": 1,
    "linepool_cancel_grace": 1,
    "linepool_memory_limit": 256 * 1024,
    "linepool_max_line": 1 << 18,
    # It is hardly ever the task's fault.
    "linepool_max_crashes": 1000,
    "task_annotations": {name: LATE for name in HONEST if name.endswith("late")},
    "broker_transport_options": {"confirm_publish": True},
    "worker_prefetch_multiplier": 4,
}
TASKS = f"""
    import os, sys
    from celery import signals
    app.conf.broker_url = os.environ["SOAK_BROKER"]

    @signals.worker_init.connect
    def listen(**kwargs):
        sys.path.append({str(HOME)!r})
        from benchmarks.soak import inside
        inside.listen(os.environ["SOAK_INSIDE"])

    @app.task(name="{PYTHON}")
    def double(number):
        return 2 * number
"""


@click.command()
@click.option("--minutes", default=30.0, show_default=True)
@click.option("--tasks", default=1_000_000, show_default=True, help="At most.")
@click.option("--rate", default=50.0, show_default=True, help="Tasks per second.")
@click.option("--faulty", default=0.01, show_default=True, help="Part of the tasks.")
@click.option("--every", default=3.0, show_default=True, help="Seconds to a trouble.")
@click.option("--seed", default=None, type=int, help="Of all that is random.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=HOME / "docs" / "benchmarks",
    show_default=True,
    help="Folder for soak.md, soak.json and soak.svg.",
)
def main(**options: Any) -> None:
    """Run a worker under faults; tell whether it kept its promises and its size."""
    options["seed"] = options["seed"] or random.randrange(10**9)
    click.echo(f"seed {options['seed']}")
    found = soak(**options)
    write(found, options["out"])
    click.echo(table(found))
    for sentence in found["broken"]:
        click.echo(f"BROKEN: {sentence}", err=True)
    grew = [name for name, line in found["lines"].items() if not line["flat"]]
    for name in grew:
        click.echo(f"GREW: {lines.LINES[name].title}", err=True)
    sys.exit(BROKEN if found["broken"] else GREW if grew else 0)


def soak(
    minutes: float,
    tasks: int,
    rate: float,
    faulty: float,
    every: float,
    seed: int,
    out: Path,
) -> Dict[str, Any]:
    chance = random.Random(seed)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))

        def make_folder(kind: str) -> Path:
            return Path(tempfile.mkdtemp(prefix=kind, dir=folder))

        guard = LeakGuard()
        servers = Servers(make_folder)
        stack.callback(servers.close)
        start = WorkerFactory(folder, servers, guard)
        stack.callback(start.close)
        project = start.project(
            "rabbitmq",
            conf=CONF,
            tasks=TASKS,
            private_broker=True,
            private_backend=True,
        )
        proxy = Proxy(project.conf["broker_url"])
        stack.callback(proxy.close)
        told = folder / "inside"
        env = {"SOAK_BROKER": proxy.url, "SOAK_INSIDE": str(told)}
        worker = start(project=project, args=("-c", "1"), env=env)

        def send(name: str, id_: str, args: List[Any]) -> None:
            worker.send(name, *args, task_id=id_, retry=True)

        backend = project.conf["result_backend"]
        load = Load(send, backend, folder, list(FAULTS), faulty, chance)
        stack.callback(load.close)
        trouble = Trouble(worker, proxy, every, chance)

        def look(began: float) -> Dict[str, Any]:
            seen = lines.sample(worker.pid, began, load.latencies())
            return {**seen, **inside.ask(told)}

        samples = run(look, load, trouble, 60 * minutes, rate, tasks)
        family = worker.children()
        if worker.stop() != 0:
            trouble.broken.append("the worker did not end well")
        if "a bug in the engine" in worker.log:
            trouble.broken.append("the log tells of a bug in the engine")
        if any(process.is_running() for process in family):
            trouble.broken.append("a process outlived the worker")
        return {
            "options": {"minutes": minutes, "rate": rate, "faulty": faulty},
            "versions": {
                "celery": celery.__version__,
                "python": platform.python_version(),
            },
            "seed": seed,
            "counts": load.counts(),
            "troubles": dict(sorted(trouble.done.items())),
            "broken": [*trouble.broken, *load.broken(trouble.cuts, SLOTS)],
            "lines": lines.judge(samples),
            "samples": samples,
        }


def run(
    look: Callable[[float], Dict[str, Any]],
    load: Load,
    trouble: Trouble,
    seconds: float,
    rate: float,
    most: int,
) -> List[Dict[str, Any]]:
    """Tasks and troubles for so long, then peace until the last task has ended."""
    samples: List[Dict[str, Any]] = []
    began = time.monotonic()
    sent = 0.0
    while (passed := time.monotonic() - began) < seconds and len(load.names) < most:
        time.sleep(LOOK)
        trouble.step()
        if not trouble.frozen:
            due = rate * passed - sent
            load.send(int(due))
            sent += int(due)
            load.look()
        if passed >= len(samples) * seconds / SAMPLES:
            samples.append(look(began))
    trouble.end()

    def all_ended() -> bool:
        load.look()
        return not load.open

    try:
        eventually(all_ended, PATIENCE, LOOK)
    except AssertionError:
        pass  # which ones, the accounts say
    return samples


def write(found: Dict[str, Any], out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "soak.json").write_text(json.dumps(found, indent=1) + "\n")
    lines.plot(found["samples"], out / "soak.svg")
    head = (Path(__file__).parent / "head.md").read_text().strip()
    (out / "soak.md").write_text(f"{head}\n\n{table(found)}\n")


def table(found: Dict[str, Any]) -> str:
    """What happened, and what came of it, in Markdown."""
    options, counts = found["options"], found["counts"]
    ends = ", ".join(f"{n} {end}" for end, n in sorted(counts["ends"].items()))
    troubles = ", ".join(f"{name} {n}" for name, n in found["troubles"].items())
    rows = [
        ("minutes", f"{options['minutes']:g}"),
        ("tasks", f"{counts['sent']}: {ends}"),
        ("of which ran twice, acknowledged late", counts["ran twice, late"]),
        ("of which ran twice, acknowledged early", counts["ran twice, early"]),
        ("faults of children", sum(counts["faults"].values())),
        ("troubles", troubles),
        ("promises that were broken", len(found["broken"])),
    ]
    parts = ["| | |", "|---|---|", *(f"| {a} | {b} |" for a, b in rows), ""]
    parts += ["| | level | growth | allowed |", "|---|---|---|---|"]
    for name, line in found["lines"].items():
        allowed = "shown" if lines.LINES[name].shown else line["allowed"]
        title = lines.LINES[name].title
        parts.append(f"| {title} | {line['level']} | {line['growth']} | {allowed} |")
    versions = found["versions"]
    parts += ["", f"Celery {versions['celery']}, Python {versions['python']}."]
    return "\n".join(parts)


if __name__ == "__main__":
    main()

"""One command, no server: a real worker, its foreign children, a few hundred tasks."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence

import click
from celery.result import AsyncResult

from celery_linepool import ForeignError
from example_app.app import COMMANDS, ROOT, app
from example_app.embedded import POLLING_INTERVAL, embedded
from example_app.invoices import charge, rows

TASK = "billing.charge"
#: Tried in this order; go is left to `--language`, as it has to be compiled first.
AUTOMATIC = ("ruby", "node", "php", "perl", "sh")
#: Tasks sent one at a time, for the latency.
ALONE = 50
#: Of how many tasks in flight the client looks for results at once.
AHEAD = 16
#: Seconds without any result after which something must be wrong. A first `go run`
#: compiles for a while.
PATIENCE = 60.0
#: Seconds for the worker to end by itself.
STOP_PATIENCE = 30.0

Row = Dict[str, Any]


class Failed(Exception):
    """The demo cannot go on; the message says why."""


class Charged(NamedTuple):
    """A row, and the settled task that charged it."""

    row: Row
    result: AsyncResult

    @property
    def as_expected(self) -> bool:
        try:
            expected = charge(self.row)
        except ZeroDivisionError:
            return isinstance(self.result.result, ForeignError)
        if self.result.state != "SUCCESS":
            return False
        return {**self.result.result, "pid": None} == {**expected, "pid": None}


class Interrupts:
    """Ctrl-C and its kin, noted down instead of raised.

    An exception out of nowhere could come between the start of the worker and the
    `finally` that stops it. The demo looks here wherever it waits.
    """

    def __init__(self) -> None:
        self._signal: Optional[int] = None
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._note)

    def _note(self, number: int, frame: object) -> None:
        self._signal = number

    def check(self) -> None:
        if self._signal is not None:
            click.echo("\nInterrupted.", err=True)
            raise SystemExit(128 + self._signal)


# --- the worker -----------------------------------------------------------------------


@contextlib.contextmanager
def running_worker(
    folder: Path, language: str, concurrency: int
) -> Iterator["subprocess.Popen[bytes]"]:
    """A worker in a process of its own, which is gone when the block is left."""
    env = {
        **os.environ,
        "EXAMPLE_FOLDER": str(folder),
        "EXAMPLE_LANGUAGE": language,
        "TMPDIR": str(folder),  # what children leave there goes with the folder
    }
    with log_file(folder).open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *worker_command(concurrency)],
            cwd=ROOT,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            # Ctrl-C is for us alone: it is we who stop the worker then.
            start_new_session=True,
        )
    try:
        yield process
    finally:
        # Without a server Celery looks up from its queue every other second only.
        click.echo("\nStopping the worker ...", err=True)
        stop(process)
    if process.returncode != 0:
        raise Failed(f"The worker ended with status {process.returncode}.")


def worker_command(concurrency: int) -> List[str]:
    command = "celery -A example_app.app worker -P celery_linepool:LinePool -l info"
    # Nobody else listens: saves the second in which a worker looks for its neighbours.
    alone = "--without-mingle --without-gossip --without-heartbeat"
    return f"{command} {alone} -c {concurrency}".split()


def log_file(folder: Path) -> Path:
    return folder / "worker.log"


def stop(process: "subprocess.Popen[bytes]") -> None:
    """SIGTERM, as any supervisor would; SIGKILL for a worker that does not end."""
    process.terminate()
    try:
        process.wait(STOP_PATIENCE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


# --- the client -----------------------------------------------------------------------


class Client:
    """Sends rows as tasks, and waits for what becomes of them."""

    def __init__(self, folder: Path, interrupts: Interrupts) -> None:
        self._interrupts = interrupts
        settings = embedded(folder)
        options = settings["broker_transport_options"]
        self._queue = Path(options["data_folder_in"])
        # kombu creates a message and writes into it after that. A worker that looks in
        # between takes an empty message and dies of it, so messages are written
        # elsewhere, and moved into the queue when they are complete.
        self._outbox = folder / "outbox"
        self._outbox.mkdir()
        settings["broker_transport_options"] = {
            **options,
            "data_folder_out": str(self._outbox),
        }
        app.conf.update(settings)

    def prepare(self, batch: Sequence[Row]) -> List[Charged]:
        """Write the tasks; no worker sees them before `hand_over`."""
        tasks = []
        for row in batch:
            self._interrupts.check()
            tasks.append(Charged(row, app.send_task(TASK, args=[row])))
        return tasks

    def hand_over(self) -> float:
        """Put what was prepared into the queue; when that was."""
        now = time.perf_counter()
        for message in sorted(self._outbox.iterdir()):
            message.rename(self._queue / message.name)
        return now

    def wait(
        self,
        batch: Sequence[Charged],
        worker: "subprocess.Popen[bytes]",
        progress: Callable[[int], None] = lambda done: None,
    ) -> float:
        """Until all are settled; when the last one was."""
        pending = [task.result for task in batch]
        news = time.perf_counter()
        while pending:
            # They settle about in order. Looking at all of them, a file each, would
            # keep a processor from the worker.
            ready = [result for result in pending[:AHEAD] if result.ready()]
            if ready:
                news = time.perf_counter()
                pending = [result for result in pending if result not in ready]
                progress(len(ready))
            elif worker.poll() is not None:
                raise Failed(f"The worker ended with status {worker.returncode}.")
            elif time.perf_counter() - news > PATIENCE:
                raise Failed(f"No result for {PATIENCE:.0f} s.")
            self._interrupts.check()
            time.sleep(0.001)
        return news


# --- the output -----------------------------------------------------------------------


def say(text: str = "", **style: Any) -> None:
    """A line on stdout; click takes the colours away if that is no terminal."""
    color = False if os.environ.get("NO_COLOR") else None
    click.echo(click.style(text, **style), color=color)


def fact(name: str, value: str) -> None:
    say(click.style(f"  {name:<12}  ", dim=True) + value)


def report_children(tasks: Sequence[Charged]) -> None:
    done = Counter(t.result.result["pid"] for t in tasks if t.result.successful())
    say("\nWho did what", bold=True)
    for pid, count in sorted(done.items()):
        bar = "#" * max(1, round(30 * count / max(done.values())))
        fact(f"child {pid}", f"{count:>6}  " + click.style(bar, fg="green"))


def report_speed(tasks: int, seconds: float, alone: Sequence[float]) -> None:
    ranked = sorted(1000 * latency for latency in alone)
    p50, p99 = ranked[len(ranked) // 2], ranked[int(len(ranked) * 0.99)]
    say("\nHow fast", bold=True)
    rate = click.style(f"{tasks / seconds:,.0f} tasks/s", bold=True)
    fact("all at once", f"{rate}  ({tasks:,} tasks in {seconds:.2f} s)")
    fact("one by one", f"p50 {p50:.1f} ms, p99 {p99:.1f} ms  ({ALONE} tasks)")
    say(
        "  From the queue to the result, both as files: the worker looks for files "
        f"every\n  {1000 * POLLING_INTERVAL:.0f} ms, and that is most of what a task "
        "alone waits for.",
        dim=True,
    )


def report_failure(tasks: Sequence[Charged]) -> None:
    """One of them, with what the foreign language says of it."""
    failed = [task for task in tasks if task.result.failed()]
    if not failed:
        return
    row, error = failed[0].row, failed[0].result.result
    say("\nOne that failed", bold=True)
    fact("invoice", f"{row['invoice']}, to pay in {row['instalments']} instalments")
    if isinstance(error, ForeignError):
        fact(str(error.foreign_type), click.style(error.message, fg="red"))
        for frame in error.backtrace:
            say(f"    {frame.replace(f'{ROOT}{os.sep}', '')}", dim=True)
    else:
        fact(type(error).__name__, click.style(str(error), fg="red"))


def report_verdict(tasks: Sequence[Charged]) -> bool:
    wrong = [task for task in tasks if not task.as_expected]
    failed = sum(task.result.failed() for task in tasks)
    charged = [t.result.result for t in tasks if t.result.successful()]
    bad_ibans = sum(not result["iban_ok"] for result in charged)
    for task in wrong[:3]:
        say(f"Not as expected: {task.row} became {task.result.result!r}", fg="red")
    if wrong:
        say(f"{len(wrong)} of {len(tasks)} results are not as expected.", fg="red")
        return False
    text = f"OK: {len(charged):,} charged ({bad_ibans} with a wrong IBAN)"
    say(f"{text}, {failed} failed, all as expected.", fg="green")
    return True


# --- the demo -------------------------------------------------------------------------


def pick_language() -> str:
    for language in AUTOMATIC:
        if shutil.which(COMMANDS[language][0]):
            return language
    raise Failed("No foreign language is installed, not even sh.")


def introduce(language: str, tasks: int, concurrency: int) -> None:
    invoices = "invoice" if tasks == 1 else "invoices"
    say(f"Charging {tasks:,} {invoices} with children in {language}\n", bold=True)
    fact("worker", " ".join(worker_command(concurrency)[:6]) + f" -c {concurrency}")
    child = [part.replace(f"{ROOT}{os.sep}", "") for part in COMMANDS[language]]
    fact("each child", shlex.join(child))
    fact("broker", "files in a temporary folder, no server")


def run(
    folder: Path, language: str, tasks: int, concurrency: int, interrupts: Interrupts
) -> bool:
    """Start, send, wait, tell, stop. Whether every result was as expected."""
    data = rows()
    client = Client(folder, interrupts)
    first = client.prepare(data[:1])
    started = client.hand_over()
    with running_worker(folder, language, concurrency) as worker:
        ready = client.wait(first, worker)
        fact("ready after", f"{ready - started:.1f} s\n")

        batch = client.prepare([data[i % len(data)] for i in range(tasks)])
        with click.progressbar(
            length=tasks, label="  charging", file=sys.stderr, show_eta=False
        ) as bar:
            begin = client.hand_over()
            end = client.wait(batch, worker, bar.update)

        alone, latencies = [], []
        for row in data[:ALONE]:
            task = client.prepare([row])
            sent = client.hand_over()
            latencies.append(client.wait(task, worker) - sent)
            alone += task

        report_children(batch)
        report_speed(tasks, end - begin, latencies)
        report_failure(batch)
    return report_verdict([*first, *batch, *alone])


@click.command()
@click.option(
    "--language",
    type=click.Choice(sorted(COMMANDS)),
    help=f"Language of the children; by default the first of {', '.join(AUTOMATIC)} "
    "that is installed.",
)
@click.option(
    "--tasks",
    type=click.IntRange(min=1),
    default=len(rows()),
    show_default=True,
    help="How many; by default one for each invoice of the data file.",
)
@click.option("--concurrency", type=click.IntRange(min=1), default=4, show_default=True)
def main(language: Optional[str], tasks: int, concurrency: int) -> None:
    """Charge a few hundred invoices with children in another language.

    Starts a real Celery worker on a temporary folder, sends it tasks, tells who did
    what and how fast, and leaves nothing behind.
    """
    interrupts = Interrupts()
    # The demo runs on its own folder, wherever your Celery usually connects to.
    for name in [name for name in os.environ if name.startswith("CELERY_")]:
        del os.environ[name]
    with tempfile.TemporaryDirectory(prefix="celery-linepool-") as path:
        folder = Path(path)
        try:
            language = language or pick_language()
            introduce(language, tasks, concurrency)
            ok = run(folder, language, tasks, concurrency, interrupts)
        except Failed as exc:
            click.echo(f"{exc} The end of its log:\n", err=True)
            log = log_file(folder).read_text(errors="replace").splitlines()
            click.echo("\n".join(log[-30:]), err=True)
            ok = False
    sys.exit(0 if ok else 1)

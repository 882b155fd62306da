"""The workers of one case, for as long as they are looked at."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Iterator, List, Sequence, Tuple

import psutil
import redis
from celery import Celery

from .contenders import CHILDREN, CONTENDERS, Case
from .site import HOME, RAILS_ENV, Site

QUEUE = "bench"
#: Seconds without a task done after which a worker is taken for hung.
HUNG = 120.0

Samples = List[Tuple[float, int]]
Publish = Callable[[int], None]


class Workers:
    """Celery workers of a contender; `samples` says how many tasks are done, and when.

    Arguments:
        extra: what the app is told besides (see app.py).
    """

    def __init__(self, case: Case, site: Site, folder: Path, **extra: Any) -> None:
        self.case, self.site, self.folder, self.extra = case, site, folder, extra
        self._child = CHILDREN[case.child]
        self._processes: List["subprocess.Popen[bytes]"] = []

    # --- tasks ------------------------------------------------------------------------

    @contextmanager
    def publisher(self) -> Iterator[Publish]:
        """What sends the task of a number; the queue is empty at first."""
        app = Celery(broker=self.site[self.case.broker], set_as_current=False)
        with app.connection_for_write() as connection:
            producer = app.amqp.Producer(connection)
            target = app.amqp.queues.select_add(QUEUE)
            target(connection.default_channel).declare()
            target(connection.default_channel).purge()

            def publish(number: int) -> None:
                message = app.amqp.as_task_v2(
                    f"00000000-0000-4000-8000-{number:012}",
                    "bench.work",
                    tuple(self.case.args),
                    {},
                )
                producer.publish(
                    message.body,
                    headers=message.headers,
                    routing_key=QUEUE,
                    delivery_mode=1,
                    **message.properties,
                )

            yield publish

    def fill(self, numbers: Iterable[int]) -> None:
        with self.publisher() as publish:
            for number in numbers:
                publish(number)

    def samples(self) -> Samples:
        return together([_samples(path) for path in self.folder.glob("samples*")])

    def done(self) -> int:
        """How many tasks are done by now."""
        return sum(_last(path) for path in self.folder.glob("samples*"))

    # --- processes --------------------------------------------------------------------

    def start(self) -> None:
        for number in range(self.case.workers):
            with Path(self.folder, f"log{number}").open("wb") as log:
                self._processes.append(
                    subprocess.Popen(
                        self._argv(number),
                        cwd=self._cwd(),
                        env={**os.environ, **self._env(number)},
                        stdout=log,
                        stderr=log,
                        start_new_session=True,
                    )
                )

    def _argv(self, number: int) -> Sequence[str]:
        return [
            *(sys.executable, "-m", "celery", "-A", "benchmarks.app", "worker"),
            *("-P", str(CONTENDERS[self.case.contender].pool), "-l", "warning"),
            *("-c", str(self.case.concurrency), "-Q", QUEUE),
            *("-n", f"worker{number}@localhost"),
            *("--without-gossip", "--without-mingle", "--without-heartbeat"),
        ]

    def _cwd(self) -> Path:
        return HOME

    def _env(self, number: int) -> Dict[str, str]:
        case, child = self.case, self._child
        conf = {
            **asdict(case),
            **self.extra,
            "broker": self.site[case.broker],
            "backend": case.results and self.site[case.results],
            "samples": str(self.folder / f"samples{number}"),
            "command": child.command,
            "cwd": child.folder and self.site[child.folder],
            "env": self._child_env() if child.folder else {},
            "notes": str(self.folder / "notes") if self.extra.get("notes") else None,
        }
        if CONTENDERS[case.contender].served:
            conf["http"] = self.site[str(child.http)]
        return {
            "BENCH_CONF": json.dumps(conf),
            "CELERY_CUSTOM_WORKER_POOL": "benchmarks.app:Null",
            "C_FORCE_ROOT": "1",
        }

    def _child_env(self) -> Dict[str, str]:
        threads = self.case.settings.get("linepool_inflight", 1)
        return {**RAILS_ENV, "RAILS_MAX_THREADS": str(threads)}

    def check(self) -> None:
        """Raise if a worker has ended, or a task failed: nothing else would tell."""
        logs = self.folder.glob("log*")
        text = "\n".join(log.read_text(errors="replace")[-2000:] for log in logs)
        codes = [process.poll() for process in self._processes]
        failed = ": ERROR/" in text and not self.extra.get("losses")
        if failed or any(code is not None for code in codes):
            raise RuntimeError(f"{self.case} failed: {codes}\n{text}")

    def wait(self, done: Callable[[], int], many: int) -> None:
        """Return when as many are done."""
        last, moved = -1, time.monotonic()
        while last < many:
            self.check()
            now = done()
            if now != last:
                last, moved = now, time.monotonic()
            if time.monotonic() - moved > HUNG:
                raise RuntimeError(f"{self.case}: nothing more was done after {last}")
            time.sleep(0.02)

    @property
    def pids(self) -> List[int]:
        return [process.pid for process in self._processes]

    def tree(self) -> List[psutil.Process]:
        """All that does the work, a server included."""
        roots = self.pids
        if CONTENDERS[self.case.contender].served:
            roots = [*roots, self.site.pids[str(self._child.http)]]
        found = []
        for process in map(psutil.Process, roots):
            found += [process, *process.children(recursive=True)]
        return found

    def cpu(self) -> float:
        """Seconds of processor time of all of them."""
        total = 0.0
        for process in self.tree():
            try:
                times = process.cpu_times()
                total += times.user + times.system
                if process.pid in self.pids:
                    total += times.children_user + times.children_system
            except psutil.NoSuchProcess:
                pass  # a process per task: its parent has its time
        return total

    def memory(self) -> Tuple[float, float]:
        """MiB of Python processes, and of everything else; proportional shares."""
        own = others = 0.0
        for process in self.tree():
            try:
                size = process.memory_full_info().pss / 2**20
                if "python" in process.name() or "celery" in process.name():
                    own += size
                else:
                    others += size
            except psutil.NoSuchProcess:
                pass  # it has just ended, and has none
        return own, others

    def end(self) -> None:
        trees = []
        for process in self._processes:
            try:
                trees += psutil.Process(process.pid).children(recursive=True)
            except psutil.NoSuchProcess:
                pass  # `check` has told
            process.send_signal(signal.SIGTERM)
        for process in self._processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for left in trees:
            try:
                left.kill()
            except psutil.NoSuchProcess:
                pass  # as it should be


class Sidekiq(Workers):
    """Sidekiq counts what it has done every five seconds: its queue is quicker."""

    def __init__(self, case: Case, site: Site, folder: Path, **extra: Any) -> None:
        super().__init__(case, site, folder, **extra)
        self._redis = redis.Redis.from_url(site["redis"])
        self._sent = 0
        self._samples: Samples = []

    @contextmanager
    def publisher(self) -> Iterator[Publish]:
        self._redis.delete("stat:processed", "stat:failed", f"queue:{QUEUE}")
        self._redis.sadd("queues", QUEUE)
        yield self._publish

    def _publish(self, number: int) -> None:
        job = {"class": "WorkJob", "args": self.case.args, "jid": f"{number:024}"}
        job.update(queue=QUEUE, retry=False, created_at=time.time())
        self._redis.lpush(f"queue:{QUEUE}", json.dumps(job))
        self._sent += 1

    def samples(self) -> Samples:
        left = self._redis.llen(f"queue:{QUEUE}")
        self._samples.append((time.monotonic(), self._sent - left))
        return self._samples

    def done(self) -> int:
        return self.samples()[-1][1]

    def _argv(self, number: int) -> Sequence[str]:
        return [
            *("bundle", "exec", "sidekiq", "-r", "./config/sidekiq.rb"),
            *("-c", str(self.case.concurrency), "-q", QUEUE),
        ]

    def _cwd(self) -> Path:
        return Path(self.site["rails"])

    def _env(self, number: int) -> Dict[str, str]:
        threads = {"RAILS_MAX_THREADS": str(self.case.concurrency)}
        return {**RAILS_ENV, **threads, "REDIS_URL": self.site["redis"]}

    def end(self) -> None:
        super().end()
        stats = self._redis.mget("stat:processed", "stat:failed")
        self._redis.close()
        processed, failed = (int(stat or 0) for stat in stats)
        if failed or processed < self._samples[-1][1] - self.case.concurrency:
            raise RuntimeError(f"{self.case}: {processed} processed, {failed} failed")


@contextmanager
def workers(case: Case, site: Site, **extra: Any) -> Iterator[Workers]:
    """Those of a case; not started yet."""
    kind = Workers if CONTENDERS[case.contender].pool else Sidekiq
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        found = kind(case, site, folder, **extra)
        stack.callback(found.end)
        yield found


def _samples(path: Path) -> Samples:
    split = [line.split() for line in path.read_text().splitlines()]
    return [(float(s[0]), int(s[1])) for s in split if len(s) == 2]


def _last(path: Path) -> int:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 100))
        whole = [line for line in file.read().split(b"\n")[:-1] if b" " in line]
    return int(whole[-1].split()[1]) if whole else 0


def together(series: List[Samples]) -> Samples:
    """What several workers have done in sum, at each moment that one tells of."""
    if len(series) == 1:
        return series[0]
    latest = [0] * len(series)
    found: Samples = []
    told = ((when, who, done) for who, s in enumerate(series) for when, done in s)
    for when, who, done in sorted(told):
        latest[who] = done
        found.append((when, sum(latest)))
    return found

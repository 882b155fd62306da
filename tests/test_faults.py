"""Every fault of a child, at every moment of its life, in every protocol.

`FAULTS` says of what kind a fault is, and `OUTCOMES` what a kind does to the task, to
the task beside it, and to the child. The cells are the product of the three, each in a
pool of its own with real children. Whatever happens, the next task is served.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from lone_pool import PATIENCE, LonePool, Task, eventually, script

from celery_linepool.job import Cancel, Loss
from celery_linepool.recycle import Limits
from celery_linepool.settings import PoolSettings

pytestmark = pytest.mark.outer_celerys

#: Cells at a time. Most of them wait for a limit, or for a child to be believed in.
AT_ONCE = 16
#: Seconds for a task whose child hangs.
LIMIT = 1.0

HARMLESS_SIGNALS = {signal.SIGCHLD, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH}
STOPPING_SIGNALS = {signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU}
REALTIME_SIGNALS = set(range(signal.SIGRTMIN + 1, signal.SIGRTMAX))
DEADLY_SIGNALS = set(signal.valid_signals()) - (
    HARMLESS_SIGNALS | STOPPING_SIGNALS | REALTIME_SIGNALS
)
#: To the pool they are one and the same: all are tried at one moment, these at each.
SOME_SIGNALS = {signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGPIPE}


def of_kind(kind: str, *faults: str) -> dict[str, str]:
    return dict.fromkeys(faults, kind)


def signals(numbers: set[int]) -> list[str]:
    return [f"signal {int(number)}" for number in sorted(numbers)]


#: What a fault is, by its name in the child.
FAULTS = {
    # A group without a terminal is stopped by SIGSTOP alone.
    **of_kind("hangs", *signals({signal.SIGSTOP})),
    **of_kind("hangs", "hang", "ignores TERM", "fork bomb"),
    **of_kind("says half", "no newline", "half a line, hangs"),
    **of_kind("dies", *signals(DEADLY_SIGNALS)),
    **of_kind("dies", "exit 0", "exit 1", "exit 137", "segfault", "out of memory"),
    **of_kind("dies", "half a line", "closes stdout", "closes both"),
    **of_kind("dies", "grandchild holds pipes"),
    **of_kind("breaks", "long line", "endless line", "reply to another"),
    **of_kind("replies badly", "infinite number"),
    **of_kind("replies unknown", "unknown status"),
    **of_kind("replies badly", "nesting bomb", "number bomb"),
    **of_kind("replies badly", "invalid UTF-8 in a reply"),
    **of_kind("replies twice", "two replies"),
    **of_kind("prints", "garbage", "NUL", "invalid UTF-8"),
    **of_kind("prints", "nested garbage", "flood of stdout"),
    **of_kind("deaf", "closes stdin"),
    **of_kind("deaf after its reply", "closes stdin, replies"),
    **of_kind("harmless", "slow", "flood of stderr", "leaks fds"),
    **of_kind("swells", "leaks memory"),
}

#: Before its first instruction: what a pool sets it sets a moment later.
LIMITED = ("sh", "-c", 'ulimit -c 0; ulimit -v 1000000; ulimit -n 64; exec "$@"', "sh")

#: Tasks that a child of each has at once; 0 for one that says no hello.
PROTOCOLS = {"original": 0, "protocol 2": 1, "inflight 8": 8}


class Cell:
    """One fault in one protocol, in a pool of its own; each moment is a method.

    They return what is seen: the outcome of the task, that of a sibling in the same
    child, and whether the child goes or stays.
    """

    def __init__(self, moment: str, fault: str, inflight: int, folder: Path) -> None:
        folder.mkdir()
        self.fault, self.kind = fault, FAULTS[fault]
        self.folder, self.inflight = folder, inflight
        self.boot = folder / "boot"
        self.hangs = self.kind in ("hangs", "says half", "deaf")
        noisy = self.kind in ("prints", "harmless")
        # With one task at a time, the task beside it is in another child.
        size = 2 if moment == "busy" and inflight < 2 else 1
        settings = PoolSettings(
            "default",
            (*LIMITED, *script("faulty.pl", inflight)),
            tasks=("*",),
            size=size,
            inflight=max(1, inflight),
            stop_timeout=1.0,
            # Only where the fault needs it: a busy machine may be late by itself.
            boot_timeout=LIMIT if moment == "booting" and not noisy else PATIENCE,
            cancel_grace=LIMIT,
            memory_limit=48 * 1024,
            max_line=1 << 18,
            env={"FAULT_AT_BOOT": str(self.boot)},
        )
        limits = Limits(tasks=1) if moment == "recycled" else Limits()
        self.pool = LonePool(settings, limits)
        self.seen = ""
        try:
            assert self.pool.boot() is None
            if inflight:
                eventually(lambda: len(self.pool.advertisements) == size)
            self.seen = getattr(self, moment)()
        finally:
            self.pool.close()

    # --- moments ----------------------------------------------------------------------

    def idle(self) -> str:
        victim = self.pool.call("arm", *self.told("idle"))
        self.begin("idle")
        if self.kind.startswith("deaf"):
            eventually(lambda: not Path(f"/proc/{victim}/fd/0").exists())
        elif not self.hangs:
            over = self.folder / "idle.over"
            self.wait(lambda: over.exists() or is_gone(victim))
        return self.ends(self.task("pid"), victim)

    def booting(self) -> str:
        """Its task is in its pipe already, unless its hello has to come first."""
        first = self.pool.call("pid")
        self.boot.write_text(self.fault)
        os.kill(first, signal.SIGKILL)
        task = self.pool.task("pid") if self.inflight else self.task("pid")
        return self.ends(task, self.signed("boot.doing"))

    def busy(self) -> str:
        sibling = self.pool.task("hold", str(self.folder / "other"))
        self.signed("other.begun")
        task = self.task("fault", *self.told("task"))
        victim = self.signed("task.begun")
        self.begin("task")
        return self.ends(task, victim, sibling)

    def reset(self) -> str:
        """The child is to be replaced, and its last task is waited for."""
        task = self.task("fault", *self.told("task"))
        victim = self.signed("task.begun")
        self.pool.do(self.pool.children.reset)
        eventually(lambda: is_gone(victim) or self.pool.member(victim)["retiring"])
        self.begin("task")
        seen = self.ends(task, victim, goes=True)
        eventually(lambda: self.pool.info()["generation"] == 1)
        return seen

    def recycled(self) -> str:
        victim = self.pool.call("arm", *self.told("stop"))
        return self.ends(self.pool.task("pid"), victim, goes=True)

    def warm(self) -> str:
        victim = self.pool.call("arm", *self.told("stop"))
        self.pool.stop()
        assert is_gone(victim)
        return "goes"

    def cold(self) -> str:
        """Whoever knows what a cancel is does it when it is cancelled."""
        if self.inflight:
            self.pool.call("arm", *self.told("cancel"))
        task = self.pool.task("hold", str(self.folder / "task"))
        victim = self.signed("task.begun")
        self.pool.engine.post(self.pool.children.kill)
        seen = outcome(task)
        self.pool.stop()
        assert is_gone(victim)
        return f"{seen}, goes"

    def soft(self) -> str:
        """The stop waits for a while, and then takes what still runs: as for a revoke.

        Meanwhile tasks go on as ever, and so do faults.
        """
        task = self.pool.task("fault", *self.told("task"))
        victim = self.signed("task.begun")
        self.begin("task")
        if not self.hangs:
            self.wait(lambda: task.ended)
        children = self.pool.children
        self.pool.do(children.terminate, task, signal.SIGTERM, Cancel.SHUTDOWN)
        seen = outcome(task)
        self.pool.stop()
        assert is_gone(victim)
        return f"{seen}, goes"

    # --- and how to come there --------------------------------------------------------

    def told(self, name: str) -> tuple[str, str, str]:
        return str(self.folder / name), self.fault, name

    def task(self, name: str, *args: Any) -> Task:
        return self.pool.task(name, *args, limit=2 * LIMIT if self.hangs else None)

    def begin(self, name: str) -> None:
        (self.folder / name).touch()
        self.signed(f"{name}.doing")

    def signed(self, name: str) -> int:
        """The pid of the child that has come so far."""
        path = self.folder / name
        return int(eventually(lambda: path.exists() and path.read_text()))

    def wait(self, condition: Callable[[], Any]) -> None:
        if self.kind == "swells":
            self.pool.look_until(condition)
        else:
            eventually(condition, PATIENCE)

    def serves(self, count: int) -> None:
        later = [self.pool.task("pid") for _ in range(count)]
        assert [outcome(task) for task in later] == ["ok"] * count

    def ends(
        self, task: Task, victim: int, sibling: Task | None = None, goes: bool = False
    ) -> str:
        self.wait(lambda: task.ended)
        seen = [outcome(task)]
        (self.folder / "other").touch()
        if sibling is not None and self.inflight > 1:
            seen.append(f"sibling {outcome(sibling)}")
        elif sibling is not None:
            assert outcome(sibling) == "ok"
        # Whatever happened, and however many are asked at once, the next are served.
        size = self.pool.children.size
        self.serves(size)
        if goes or self.kind.startswith("deaf"):  # which is found by being asked
            eventually(lambda: self.serves(size) or is_gone(victim))
        eventually(lambda: len(self.pool.idle_pids()) == size)
        seen.append("stays" if victim in self.pool.idle_pids() else "goes")
        return ", ".join(seen)


def is_gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def outcome(task: Task) -> str:
    answer = task._answer.result(PATIENCE)
    if isinstance(answer, Loss):
        return answer.cause.value
    return str(answer.fields["status"])


#: What a kind does to a task at the moments idle, booting and busy; three of them where
#: the protocols differ. "goes" and "stays" is said of the child.
OUTCOMES: dict[str, tuple[str, str, str]] = {
    "hangs": (
        "limit, goes",
        "limit, goes | ok, goes | ok, goes",
        "limit, goes | limit, goes | limit, sibling sibling, goes",
    ),
    "says half": (
        "ok, goes | limit, goes | limit, goes",
        "limit, goes | ok, goes | ok, goes",
        "limit, goes | limit, goes | limit, sibling sibling, goes",
    ),
    "dies": (
        "ok, goes",
        "ok, goes",
        "died, goes | died, goes | died, sibling died, goes",
    ),
    # Whose line it was among several, nobody can tell.
    "breaks": (
        "ok, goes",
        "violation, goes | ok, goes | ok, goes",
        "violation, goes | violation, goes | sibling, sibling sibling, goes",
    ),
    "replies badly": (
        "ok, goes | ok, stays | ok, stays",
        "violation, goes | ok, stays | ok, stays",
        "violation, goes | violation, goes | violation, sibling sibling, goes",
    ),
    "replies unknown": (
        "ok, goes",
        "violation, goes | ok, goes | ok, goes",
        "violation, goes | violation, goes | violation, sibling sibling, goes",
    ),
    # The second one is taken for a reply of the only other task that is left.
    "replies twice": (
        "ok, goes",
        "violation, goes | ok, goes | ok, goes",
        "ok, goes | ok, goes | ok, sibling violation, goes",
    ),
    "prints": (
        "ok, goes | ok, stays | ok, stays",
        "violation, goes | ok, stays | ok, stays",
        "violation, goes | ok, stays | ok, sibling ok, stays",
    ),
    # Nobody can tell that the request which it has already will not be read.
    "deaf": (
        "ok, goes",
        "limit, goes | ok, goes | ok, goes",
        "limit, goes | limit, goes | limit, sibling sibling, goes",
    ),
    "deaf after its reply": (
        "ok, goes",
        "violation, goes | ok, goes | ok, goes",
        "ok, goes | ok, goes | ok, sibling ok, goes",
    ),
    "harmless": (
        "ok, stays",
        "ok, stays",
        "ok, stays | ok, stays | ok, sibling ok, stays",
    ),
    "swells": (
        "ok, goes",
        "memory, goes | ok, goes | ok, goes",
        "memory, goes | memory, goes | memory, sibling memory, goes",
    ),
}
assert set(OUTCOMES) == set(FAULTS.values())

#: At a cold stop, of a child that was cancelled and replies to it; all others are lost.
COLD = {
    **dict.fromkeys(["breaks", "replies badly", "replies unknown"], "violation"),
    **dict.fromkeys(["replies twice", "prints", "harmless"], "ok"),
    "deaf after its reply": "ok",
}


def of_protocol(text: str, protocol: str) -> str:
    cells = text.split(" | ")
    return cells[list(PROTOCOLS).index(protocol) if len(cells) > 1 else 0]


def expected(moment: str, protocol: str, kind: str) -> str:
    if moment == "warm":
        return "goes"
    if moment == "recycled":
        return "ok, goes"
    if moment == "cold":
        seen = COLD.get(kind, "died") if PROTOCOLS[protocol] else "died"
        return f"{seen}, goes"
    idle, booting, busy = OUTCOMES[kind]
    if moment in ("reset", "soft"):  # it is alone in its child
        alone = "protocol 2" if PROTOCOLS[protocol] else protocol
        seen = of_protocol(busy, alone).replace("stays", "goes")
        return seen.replace("limit", "terminated") if moment == "soft" else seen
    return of_protocol(
        {"idle": idle, "booting": booting, "busy": busy}[moment], protocol
    )


MOMENTS = ("idle", "booting", "busy", "reset", "recycled", "warm", "soft", "cold")


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("moment", MOMENTS)
def test_faults(moment, protocol, tmp_path, caplog):
    caplog.set_level("CRITICAL")

    def see(fault: str) -> str:
        try:
            return Cell(moment, fault, PROTOCOLS[protocol], tmp_path / fault).seen
        except AssertionError as exc:
            return str(exc)

    few = signals(DEADLY_SIGNALS - SOME_SIGNALS) if moment != "busy" else []
    faults = [fault for fault in FAULTS if fault not in few]
    with ThreadPoolExecutor(AT_ONCE) as threads:
        seen = dict(zip(faults, threads.map(see, faults)))
    if moment == "cold":
        # A second is all that it has, which on a busy machine may be too short.
        for fault in [f for f in faults if seen[f] == "died, goes"]:
            del seen[fault]
    assert seen == {f: expected(moment, protocol, FAULTS[f]) for f in seen}
    # The engine goes on after a bug of its own. A test does not.
    assert [record.getMessage() for record in caplog.records] == []

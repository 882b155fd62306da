"""One core for the threads of the worker's own process that share the interpreter.

Only one of them runs at a time anyhow. On several cores each hand-over between the main
thread and the engine wakes another core and moves what both use from cache to cache,
twice or more for a task. Children, and threads for Python tasks, keep all cores.

A process has one set of cores, so this is the process's state and no object's.
"""

from __future__ import annotations

import os
import random
import socket
from contextlib import contextmanager
from typing import Iterator, Optional, Set, Union

SUPPORTED = hasattr(os, "sched_setaffinity")

#: The cores that the process had; None while it has them.
_all: Optional[Set[int]] = None
#: Held by one process at a time for each core.
_claim: Optional[socket.socket] = None


def narrow(core: Union[bool, int]) -> None:
    """Have this thread, and those that it will start, share one core.

    Arguments:
        core: its number; True for one that no other worker has; False for no change.
    """
    global _all
    if core is False:
        return
    _all = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {_free_core(_all) if core is True else core})


def widen() -> None:
    """Have this thread, and those that it will start, run anywhere again."""
    if _all is not None:
        os.sched_setaffinity(0, _all)


@contextmanager
def wide() -> Iterator[None]:
    """The same for a moment: a process inherits from the thread that starts it."""
    if _all is None:
        yield
        return
    one = os.sched_getaffinity(0)
    widen()
    try:
        yield
    finally:
        os.sched_setaffinity(0, one)


def release() -> None:
    """Let another worker have the core."""
    global _all, _claim
    widen()
    _all = None
    if _claim is not None:
        _claim.close()
        _claim = None


def _free_core(cores: Set[int]) -> int:
    """One that no other worker on this machine has claimed, if there is one."""
    global _claim
    shuffled = random.sample(sorted(cores), len(cores))
    for core in shuffled:
        claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            # Linux's abstract names: no file, and gone with the process.
            claim.bind(f"\0celery-linepool-core-{core}")
        except OSError:
            claim.close()
            continue
        _claim = claim
        return core
    return shuffled[0]


# The embedded beat (-B) is a fork of the worker, with an interpreter of its own.
os.register_at_fork(after_in_child=release)

"""A process and whatever it has started: who runs, and what it costs."""

from __future__ import annotations

import os
from typing import Iterator, List, Optional, Sequence

import psutil


def descendants(pid: int) -> List[psutil.Process]:
    """What it has started and what these have started, as far as that runs."""
    process = _process(pid)
    try:
        return process.children(recursive=True) if process else []
    except psutil.NoSuchProcess:
        return []


def survivors(pid: int, family: Sequence[psutil.Process]) -> List[psutil.Process]:
    """Those of its family, its group or its session that run although it has ended."""
    known = {process.pid for process in family}
    led = (other for other in psutil.pids() if _is_led(other, pid))
    more = [_process(other) for other in led if other not in known]
    return [p for p in [*family, *more] if p and p.pid != pid and _runs(p)]


def kill(process: psutil.Process) -> None:
    """SIGKILL, unless it has ended or belongs to somebody else."""
    try:
        process.kill()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        pass


def memory(pid: int) -> int:
    """Bytes of memory of it and of what it has started."""
    total = 0
    for process in _all(pid):
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            pass  # it has just ended, and has no memory
    return total


def work(pid: int) -> float:
    """Seconds of work of it and of what it has started."""
    total = 0.0
    for process in _all(pid):
        try:
            total += sum(process.cpu_times()[:2])
        except psutil.NoSuchProcess:
            pass  # it has just ended
    return total


def _all(pid: int) -> Iterator[psutil.Process]:
    process = _process(pid)
    if process:
        yield process
    yield from descendants(pid)


def _is_led(pid: int, leader: int) -> bool:
    try:
        return leader in (os.getpgid(pid), os.getsid(pid))
    except OSError:
        return False  # it has just ended


def _process(pid: int) -> Optional[psutil.Process]:
    try:
        return psutil.Process(pid)
    except psutil.NoSuchProcess:
        return None


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False

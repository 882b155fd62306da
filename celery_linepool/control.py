"""Remote-control commands: ``celery control linepool_reset`` and its like.

Those that change something answer ``{"ok": ...}``, those that look the thing itself,
and both ``{"error": ...}``, as Celery's own do.
"""

from __future__ import annotations

from typing import Any, Callable, Optional

from celery.worker.control import control_command, inspect_command, nok, ok


def _of_pool(state: Any, ask: Callable[[Any], Any]) -> Any:
    """What `ask` returns for the worker's LinePool, or the error."""
    pool = state.consumer.pool
    if getattr(pool, "runtime", None) is None:
        return nok("this worker has no LinePool")
    try:
        return ask(pool)
    except ValueError as exc:
        return nok(str(exc))


@control_command(  # type: ignore[untyped-decorator]
    args=[("pool", str)], signature="[pool]"
)
def linepool_reset(state: Any, pool: Optional[str] = None) -> Any:
    """Replace the children of one pool, or of all, one by one and losing no task."""
    return _of_pool(state, lambda p: p.reset(pool) or ok("reset started"))


@control_command(  # type: ignore[untyped-decorator]
    args=[("pool", str), ("n", int)], signature="<pool> <n>"
)
def linepool_scale(state: Any, pool: str, n: int) -> Any:
    """Have so many children in one pool. Busy ones that are too many finish first."""
    return _of_pool(state, lambda p: p.scale(pool, n) or ok(f"{pool} will have {n}"))


@control_command(  # type: ignore[untyped-decorator]
    args=[("pool", str)], signature="[pool]"
)
def linepool_pause(state: Any, pool: Optional[str] = None) -> Any:
    """Start no more tasks in one pool, or in all; what runs goes on."""
    return _of_pool(state, lambda p: p.pause(pool) or ok("paused"))


@control_command(  # type: ignore[untyped-decorator]
    args=[("pool", str)], signature="[pool]"
)
def linepool_resume(state: Any, pool: Optional[str] = None) -> Any:
    """Start tasks again after a pause."""
    return _of_pool(state, lambda p: p.resume(pool) or ok("resumed"))


@inspect_command()  # type: ignore[untyped-decorator]
def linepool_stats(state: Any) -> Any:
    """Every pool and child: what they do, and what they have done."""
    return _of_pool(state, lambda p: p.runtime.info())


@inspect_command(  # type: ignore[untyped-decorator]
    args=[("pid", int)], signature="<pid>"
)
def linepool_dump(state: Any, pid: int) -> Any:
    """One child: its tasks and its last lines on stderr.

    With linepool_dump_signal it is asked for its stack, which will be in the log.
    """
    return _of_pool(state, lambda p: p.runtime.dump(int(pid)))


COMMANDS = (linepool_reset, linepool_scale, linepool_pause, linepool_resume)
INSPECTIONS = (linepool_stats, linepool_dump)

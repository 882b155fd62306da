"""Remote-control commands: ``celery control linepool_reset``."""

from __future__ import annotations

from typing import Any, Dict, Optional

from celery.worker.control import control_command, nok, ok


@control_command(  # type: ignore[untyped-decorator]
    args=[("pool", str)], signature="[pool]"
)
def linepool_reset(state: Any, pool: Optional[str] = None) -> Dict[str, str]:
    """Replace the children of one pool, or of all, one by one and losing no task."""
    reset = getattr(state.consumer.pool, "reset", None)
    if reset is None:
        return dict(nok("this worker has no LinePool"))
    try:
        reset(pool)
    except ValueError as exc:
        return dict(nok(str(exc)))
    return dict(ok("reset started"))

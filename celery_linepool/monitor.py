"""Watches the engine: what holds it up is named, and limits hold even so.

The engine runs Celery's tracer, and with it whatever the user connected to Celery's
signals. If that blocks, nobody reads replies; this thread says who it is, and kills
the children whose time is up.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
import traceback
from typing import Callable, Iterable, Optional

from .child import Child
from .engine import Engine

logger = logging.getLogger(__name__)

#: Seconds between looks.
PERIOD = 0.5
#: Seconds in one turn of the engine that are worth a warning. A turn takes some
#: hundred microseconds.
BLOCKED = 1.0


class Monitor(threading.Thread):
    """Looks at the engine from outside.

    Arguments:
        overdue: children that exceeded their time limit, by the monotonic clock.
        look: looks after everything else that changes slowly.
    """

    def __init__(
        self,
        engine: Engine,
        overdue: Callable[[float], Iterable[Child]],
        look: Callable[[], None],
    ) -> None:
        super().__init__(name="linepool-monitor", daemon=True)
        self._engine = engine
        self._overdue = overdue
        self._look = look
        self._stopped = threading.Event()
        self._warned: Optional[float] = None

    def stop(self) -> None:
        self._stopped.set()
        if self.is_alive():
            self.join()

    def run(self) -> None:
        while not self._stopped.wait(PERIOD):
            self.check_engine(time.monotonic())
            self._look()

    def check_engine(self, now: float) -> None:
        since = self._engine.awake_since
        if since is None or now - since < BLOCKED:
            return
        if self._warned != since:
            self._warned = since
            logger.warning(
                "linepool: the engine has been held up for %.1f s by code that should "
                "be short (a signal receiver?):\n%s",
                now - since,
                self._where(),
            )
        # The engine reaps children, and does not just now: their pids are theirs.
        for child in self._overdue(now):
            child.kill()

    def _where(self) -> str:
        frame = sys._current_frames().get(self._engine.ident or 0)
        return "".join(traceback.format_stack(frame, limit=-6)) if frame else ""

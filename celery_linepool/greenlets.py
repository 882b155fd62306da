"""Greenlets that are kept for the next task.

The memory for a greenlet's stack comes from the kernel each time, which costs half as
much as Celery's tracer.
"""

from __future__ import annotations

import contextvars
from typing import Any, Callable, List, Optional, Tuple

from greenlet import getcurrent, greenlet


class Greenlets:
    """Runs calls that leave off where they would wait. All in one thread.

    Arguments:
        do: runs a call, and lets no exception out.
    """

    def __init__(self, do: Callable[[Callable[[], Any]], Any]) -> None:
        self._do = do
        #: The loop of the thread.
        self.loop: Optional[greenlet] = None
        #: Those that wait for a call.
        self._idle: List[greenlet] = []
        self._held: Tuple[Optional[greenlet], ...] = ()

    def start(self, run: Callable[[], Any]) -> None:
        """Call `run()` in a greenlet that nobody else uses meanwhile."""
        if self._idle:
            host = self._idle.pop()
        else:
            host = greenlet(self._host, parent=self.loop)
            host.gr_context = contextvars.copy_context()
        host.switch(run)

    def _host(self, run: Optional[Callable[[], Any]]) -> None:
        while run is not None:
            self._do(run)
            self._idle.append(getcurrent())
            run = self.suspend()

    def suspend(self) -> Any:
        """Leave the running greenlet until it is switched to; what that one gave."""
        assert self.loop is not None and getcurrent() is not self.loop
        return self.loop.switch()

    def close(self) -> None:
        """End those that wait. From the loop, as the last that its thread does.

        If there is one reference to the greenlet of a thread that ends, and the garbage
        collector does not know whose it is, greenlet takes it for a leak and drops it.
        The collector knows of nobody that it is just about to collect, or that was
        frozen, and the loop would be freed while we have it. So there are two.
        """
        while self._idle:
            self._idle.pop().switch(None)
        self._held = (self.loop, self.loop)

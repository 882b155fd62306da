"""The thread that owns all children's stdin and stdout, the timers and the greenlets.

It is a thread of ours and never the worker's event loop: that one stands still while
Celery reconnects to a broker and during shutdown. So tasks in flight finish while the
broker is away, and a drain is nothing but the engine running on.

Whatever runs here must not block. A task's greenlet runs Celery's tracer and comes
back to the loop wherever it would wait: `suspend` leaves it, `resume` goes on in it.
"""

from __future__ import annotations

import logging
import selectors
import threading
import time
from collections import deque
from typing import Any, Callable, Deque, Optional, Tuple

from greenlet import getcurrent, greenlet

from .greenlets import Greenlets
from .mailbox import Mailbox
from .timers import Timer, Timers

logger = logging.getLogger(__name__)

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE
#: Seconds of one sleep: the kernel counts milliseconds in an int, which are 24 days.
LONGEST = 3600.0


class Engine(threading.Thread):
    """A selector loop. Only `post` and `put` may be called from another thread.

    Arguments:
        turned: called in the loop before it may sleep, after everything else.
    """

    def __init__(self, turned: Callable[[], Any] = lambda: None) -> None:
        super().__init__(name="linepool-engine", daemon=True)
        self._inbox = Mailbox()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._inbox, READ, self._inbox.clear_wakeup)
        self._timers = Timers()
        self._ready: Deque[Tuple[Callable[..., Any], Tuple[Any, ...]]] = deque()
        self._running = True
        self._turned = turned
        self._greenlets = Greenlets(self._do)
        #: The thread's ident: Thread's own is a property, and each task asks for it.
        self._here: Optional[int] = None
        #: When the engine last left `select`; None while it waits there.
        self.awake_since: Optional[float] = None

    # --- from any thread --------------------------------------------------------------

    def post(self, call: Callable[..., Any], *args: Any) -> None:
        """Have `call(*args)` run in the engine."""
        self._inbox.post(call, *args)

    def put(self, call: Callable[..., Any], *args: Any) -> None:
        """The same at its next turn, whenever that is: it is not woken."""
        self._inbox.put(call, *args)

    def wake(self) -> None:
        """Have it look at what was put."""
        self._inbox.wake()

    def stop(self) -> None:
        """End the loop, wait for the thread, close everything."""
        self.post(self._halt)
        self.join()
        self._selector.close()
        self._inbox.close()

    def is_here(self) -> bool:
        """Whether the caller runs in the engine's thread."""
        return threading.get_ident() == self._here

    # --- in the engine's thread -------------------------------------------------------

    def soon(self, call: Callable[..., Any], *args: Any) -> None:
        """Run `call(*args)` in the loop, after what is running now."""
        self._ready.append((call, args))

    def call_later(self, seconds: float, call: Callable[..., Any], *args: Any) -> Timer:
        return self._timers.add(time.monotonic() + seconds, call, *args)

    def cancel(self, timer: Timer) -> None:
        self._timers.cancel(timer)

    def watch(self, fd: int, events: int, call: Callable[[], Any]) -> None:
        """Run `call()` whenever the descriptor is ready; replaces what was watched."""
        try:
            self._selector.register(fd, events, call)
        except KeyError:
            self._selector.modify(fd, events, call)

    def unwatch(self, fd: int) -> None:
        """No more; to be called before the descriptor is closed."""
        try:
            self._selector.unregister(fd)
        except KeyError:
            pass  # it was not watched

    def start_greenlet(self, run: Callable[[], Any]) -> None:
        """Call `run()` in a greenlet that nobody else uses meanwhile."""
        self._greenlets.start(run)

    def suspend(self) -> Any:
        """Leave the running greenlet until `resume`; what that one was given."""
        return self._greenlets.suspend()

    @staticmethod
    def resume(task: greenlet, value: Any) -> None:
        """Go on in a suspended greenlet. Only from the loop itself."""
        task.switch(value)

    # --- the loop ---------------------------------------------------------------------

    def run(self) -> None:
        self._here, self._greenlets.loop = threading.get_ident(), getcurrent()
        while self._running:
            for key, _ in self._selector.select(self._patience()):
                self.awake_since = self.awake_since or time.monotonic()
                self._do(key.data)
            self._inbox.armed = False
            self.awake_since = self.awake_since or time.monotonic()
            self._run_due()
            self._run_ready()
            self._turned()
        self._greenlets.close()

    def _patience(self) -> Optional[float]:
        """Seconds to wait at the most; afterwards the inbox must not be skipped."""
        self.awake_since = None
        self._inbox.armed = True
        if self._ready or self._inbox:
            return 0
        due = self._timers.next_due()
        return None if due is None else min(max(0.0, due - time.monotonic()), LONGEST)

    def _run_due(self) -> None:
        now = time.monotonic()
        while True:
            timer = self._timers.pop_due(now)
            if timer is None or timer.call is None:
                return
            call, timer.call = timer.call, None
            self._do(call, *timer.args)

    def _run_ready(self) -> None:
        # What is posted meanwhile waits for the next turn: the children come first.
        for _ in range(len(self._inbox)):
            call, args = self._inbox.take()
            self._do(call, *args)
        while self._ready:
            call, args = self._ready.popleft()
            self._do(call, *args)

    def _do(self, call: Callable[..., Any], *args: Any) -> None:
        try:
            call(*args)
        except Exception:
            # One broken call must not end every task of the worker.
            logger.critical("linepool: a bug in the engine, in %r", call, exc_info=True)

    def _halt(self) -> None:
        self._running = False

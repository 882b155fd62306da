"""What happens to a worker and to the world around it during a soak."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from contextlib import suppress
from typing import Any, Callable, List, Optional, Tuple

import psutil

#: Seconds for which a server is frozen.
FROZEN = 1.5
#: How often each of them happens, in shares.
SHARES = {
    "kill a child": 8,
    "stop a child": 4,
    "ping": 4,
    "junk in the queue": 4,
    "scale": 3,
    "reset": 2,
    "cut the connection": 2,
    "freeze the broker": 1,
    "freeze the backend": 1,
    "crash the broker": 0.3,
}
#: Whose size changes, and between which.
POOL, SIZES = "one", (2, 3)
#: After which a cut comes: somewhere in the middle of what is said next.
BYTES = 2000


class Trouble:
    """Makes trouble now and then.

    Arguments:
        worker: a worker with a broker and a backend of its own.
        proxy: between the worker and its broker.
        every: seconds between two troubles, on the average.
    """

    def __init__(
        self, worker: Any, proxy: Any, every: float, chance: random.Random
    ) -> None:
        self._worker = worker
        self._proxy = proxy
        self._every = every
        self._chance = chance
        self._next = time.monotonic() + every
        self._frozen: Optional[Tuple[float, Any]] = None
        self.done: Counter[str] = Counter()
        self.broken: List[str] = []

    @property
    def frozen(self) -> bool:
        """Whether a server does not answer just now."""
        return self._frozen is not None

    def step(self) -> None:
        """Do what is due."""
        now = time.monotonic()
        if self._frozen is not None:
            until, server = self._frozen
            if now >= until:
                server.resume()
                self._frozen = None
        elif now >= self._next:
            self._next = now + self._chance.expovariate(1 / self._every)
            names = list(SHARES)
            [name] = self._chance.choices(names, list(SHARES.values()))
            action: Callable[[], None] = getattr(self, "_" + name.replace(" ", "_"))
            action()
            self.done[name] += 1

    def end(self) -> None:
        """Nothing is frozen any more."""
        if self._frozen is not None:
            self._frozen[1].resume()
            self._frozen = None

    @property
    def cuts(self) -> int:
        """How often the worker may have lost its broker."""
        names = ("cut the connection", "crash the broker")
        return sum(self.done[name] for name in names)

    def _signal(self, number: int) -> None:
        children = self._worker.children(r"lives|faulty")
        if children:
            with suppress(psutil.NoSuchProcess):
                self._chance.choice(children).send_signal(number)

    def _kill_a_child(self) -> None:
        self._signal(signal.SIGKILL)

    def _stop_a_child(self) -> None:
        self._signal(signal.SIGSTOP)

    def _ping(self) -> None:
        self._control("ping")

    def _reset(self) -> None:
        self._control("linepool_reset")

    def _scale(self) -> None:
        self._control("linepool_scale", pool=POOL, n=self._chance.choice(SIZES))

    def _control(self, command: str, **arguments: Any) -> None:
        # Twice: one that is under way when a connection is cut goes with it.
        for _ in range(2):
            answer = self._worker.control(command, **arguments)
            if "ok" in (answer or {}):
                return
        self.broken.append(f"{command}: {answer}")

    def _cut_the_connection(self) -> None:
        direction = self._chance.choice(("up", "down"))
        self._proxy.cut_after(direction, self._chance.randrange(BYTES))

    def _freeze_the_broker(self) -> None:
        self._freeze(self._worker.broker)

    def _freeze_the_backend(self) -> None:
        self._freeze(self._worker.backend)

    def _freeze(self, server: Any) -> None:
        server.pause()
        self._frozen = (time.monotonic() + FROZEN, server)

    def _crash_the_broker(self) -> None:
        self._worker.broker.crash()
        self._worker.broker.start()

    def _junk_in_the_queue(self) -> None:
        body = self._chance.choice((b"\xff{", b"[" * 100_000, b"[[], {}]", b"null"))
        connection = self._worker.app.connection_for_write()
        with connection, connection.Producer() as producer:
            producer.publish(
                body,
                routing_key=self._worker.queue,
                headers={"task": "one.late", "id": "junk"},
                content_type="application/json",
                content_encoding="utf-8",
            )

"""Signals that end a command, and with it its children."""

from __future__ import annotations

import contextlib
import signal
import sys
from typing import Iterator, Optional

SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)


class Signals:
    """Each of them leaves the command, and whoever cleans up on the way out does so."""

    def __init__(self) -> None:
        self._held = False
        self._came: Optional[int] = None

    @contextlib.contextmanager
    def handled(self) -> Iterator[None]:
        before = {signum: signal.signal(signum, self._handle) for signum in SIGNALS}
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """They wait for the end of this: what it makes is not known to anybody yet."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        if self._came is not None:
            sys.exit(128 + self._came)

    def _handle(self, signum: int, frame: object) -> None:
        self._came = signum
        if not self._held:
            sys.exit(128 + signum)

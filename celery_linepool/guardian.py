"""One small process that outlives the worker by a moment, to kill what it left.

A child that is busy, or ignores the end of its stdin, would go on after its worker was
SIGKILLed, and so would its grandchildren; PR_SET_PDEATHSIG reaches only the child
itself, only on Linux, and needs code to run between fork and exec.
"""

from __future__ import annotations

import logging
import os
import subprocess
import weakref
from pathlib import Path
from typing import Optional, Set

from .cores import wide
from .errors import SpawnError

logger = logging.getLogger(__name__)

SCRIPT = Path(__file__).with_name("guardian.sh")


class Guardian:
    """Knows the process group of every living child. One thread uses it: the engine."""

    def __init__(self) -> None:
        self._groups: Set[int] = set()
        self._process: Optional[subprocess.Popen[bytes]] = None
        _guardians.add(self)

    @property
    def pid(self) -> Optional[int]:
        return self._process.pid if self._process else None

    def start(self) -> None:
        with wide():
            self._process = subprocess.Popen(
                ["/bin/sh", str(SCRIPT)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                # Out of reach of Ctrl-C and of whoever kills the worker's group.
                start_new_session=True,
            )

    def watch(self, group: int) -> None:
        """Know a group from now on.

        Raises:
            SpawnError: nobody can: the guardian was killed, and there is no other.
        """
        self._groups.add(group)
        try:
            self._tell(f"+ {group}\n")
        except OSError as exc:
            self._groups.discard(group)
            raise SpawnError(f"its guardian cannot be started: {exc}") from exc

    def unwatch(self, group: int) -> None:
        """Forget a group; to be called before its leader is reaped.

        Afterwards the number may belong to somebody else.
        """
        self._groups.discard(group)
        try:
            self._tell(f"- {group}\n")
        except OSError as exc:
            logger.error(
                "linepool guardian cannot be started; trying again with the next "
                "child: %s",
                exc,
            )

    def stop(self) -> None:
        if self._process is not None:
            self._close_pipe()
            self._process.wait()
            self._process = None

    def _tell(self, line: str) -> None:
        if self._process is not None and self._process.stdin is not None:
            try:
                os.write(self._process.stdin.fileno(), line.encode())
                return
            except BrokenPipeError:
                logger.warning(
                    "linepool guardian (pid %s) was killed; starting another",
                    self._process.pid,
                )
                self.stop()
        self.start()
        for group in self._groups:
            self._tell(f"+ {group}\n")

    def _close_pipe(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            try:
                self._process.stdin.close()
            except BrokenPipeError:
                pass  # it was killed: nothing to say to it any more


_guardians: weakref.WeakSet[Guardian] = weakref.WeakSet()


def _let_go_in_fork() -> None:
    # The embedded beat (-B) is a fork of the worker. Were it to hold a copy of the
    # pipe, the guardian would wait for beat as well.
    for guardian in list(_guardians):
        guardian._close_pipe()


os.register_at_fork(after_in_child=_let_go_in_fork)

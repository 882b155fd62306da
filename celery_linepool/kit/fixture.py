"""The pytest fixture ``linepool_child``: a child of the user's, in the user's test."""

from __future__ import annotations

import uuid
from contextlib import ExitStack, contextmanager
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence

import pytest

from ..errors import ForeignError
from ..messages import show
from ..outcomes import foreign_error
from .company import Company, Options
from .said import Said
from .scenario import Failure

#: Seconds for one reply, and for a boot. Only a mistake takes that long.
TIMEOUT, BOOT_TIMEOUT = 60.0, 120.0


class StartedChild:
    """One running child, and what it has been asked."""

    def __init__(self, options: Options) -> None:
        self._company = Company(options)
        self._talk = self._company.start()
        #: All events that it sent, the oldest first: progress, log, publish.
        self.events: List[Dict[str, Any]] = []
        self._replies: Dict[str, Dict[str, Any]] = {}

    @property
    def pid(self) -> int:
        return self._talk.child.pid

    @property
    def tasks(self) -> Sequence[str]:
        """Those that it named in its hello; none for the original protocol."""
        hello = self._talk.hello
        return () if hello is None else hello.tasks

    @property
    def stderr(self) -> str:
        """What it wrote there so far; the end of it, if that is much."""
        return self._talk.child.stderr.decode(errors="backslashreplace")

    @property
    def oddities(self) -> List[str]:
        """What it said that is no protocol, or breaks it."""
        return [f"{odd.kind.value}: {show(odd.line)}" for odd in self._company.oddities]

    def call(self, task: str, *args: Any, **options: Any) -> Any:
        """The result of a task.

        Raises:
            ForeignError: it failed.
            AssertionError: it ended in another way, or did not.
        """
        reply = self.ask(task, *args, **options)
        if reply["status"] == "error":
            raise foreign_error(reply) or ForeignError("the child gave no message")
        assert reply["status"] == "ok", f"{task} has no result: {reply}"
        return reply.get("result")

    def ask(
        self,
        task: str,
        *args: Any,
        kwargs: Optional[Mapping[str, Any]] = None,
        meta: Optional[Mapping[str, Any]] = None,
    ) -> Dict[str, Any]:
        """The whole reply to a task; the events before it are in `events`.

        Raises:
            AssertionError: there was none.
        """
        return self.wait(self.send(task, *args, kwargs=kwargs, meta=meta))

    def send(
        self,
        task: str,
        *args: Any,
        kwargs: Optional[Mapping[str, Any]] = None,
        meta: Optional[Mapping[str, Any]] = None,
    ) -> str:
        """Ask, and do not wait: the request's id, for `wait` and `cancel`."""
        with self._told():
            return self._talk.request(task, *args, kwargs=kwargs, meta=meta)

    def wait(self, id: str) -> Dict[str, Any]:
        """The reply to a request that was sent.

        Raises:
            AssertionError: there was none.
        """
        with self._told():
            while id not in self._replies:
                self._note(self._talk.next())
        return self._replies.pop(id)

    def cancel(self, id: str, reason: str = "revoked") -> None:
        """Ask it to give a request up, as a worker does at a soft time limit."""
        with self._told():
            self._talk.op("cancel", id=id, reason=reason)

    def stop(self) -> int:
        """End its stdin, and wait for its end: its exit code, negative for a signal.

        Raises:
            AssertionError: it does not end.
        """
        with self._told():
            if self._talk.child.ended_at is None:
                self._talk.end()
            code = self._talk.child.exit_code
            assert code is not None
            return code

    def close(self) -> None:
        """Kill what is left of it."""
        self._company.close()

    def _note(self, said: Said) -> None:
        if said.op == "publish":
            # A worker would send it, and answer with its id.
            seq = said.fields.get("seq")
            self._talk.op("answer", id=said.id, seq=seq, task_id=str(uuid.uuid4()))
        if not said.op:
            self._replies[str(said.id)] = said.fields
        elif said.op != "hello":
            self.events.append(said.fields)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """What it did not do, in words for the report of a test."""
        try:
            yield
        except Failure as failure:
            read = failure.read or (self._talk.last.line if self._talk.last else b"")
            text = f"expected {failure.expected}; it said {show(read) or 'nothing'}"
            stderr = f"\nIts stderr:\n{self.stderr}" if self.stderr else ""
            raise AssertionError(text + stderr) from None


@pytest.fixture
def linepool_child() -> Iterator[Callable[..., StartedChild]]:
    """Starts children: ``linepool_child(["ruby", "worker.rb"], cwd="shop")``.

    They are ended after the test.
    """
    with ExitStack() as cleanup:

        def start(
            command: Sequence[str],
            cwd: Optional[str] = None,
            env: Optional[Mapping[str, str]] = None,
            timeout: float = TIMEOUT,
        ) -> StartedChild:
            options = Options(
                tuple(map(str, command)),
                None if cwd is None else str(cwd),
                dict(env or {}),
                timeout=timeout,
                boot_timeout=BOOT_TIMEOUT,
            )
            child = StartedChild(options)
            cleanup.callback(child.close)
            return child

        yield start

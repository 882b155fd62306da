"""What is said to one child and by it: requests in flight, replies, events."""

from __future__ import annotations

import time
from typing import Any, Dict, List, Mapping, Optional, Tuple

from ..messages import Hello
from .child import Child, Late
from .processes import work
from .reader import Reader
from .said import Said, encode
from .scenario import Failure

#: Seconds that a child has to end, by section 1 of the protocol.
END = 2.0


class Silent(Failure):
    """It is alive and says nothing."""


class Talk:
    """A child and what it has been asked.

    Arguments:
        reader: makes sense of what it says.
        timeout: seconds to wait for one thing that it should say or do.
        boot_timeout: seconds to wait as long as it has said nothing.
    """

    def __init__(
        self,
        child: Child,
        reader: Reader,
        timeout: float,
        boot_timeout: float,
    ) -> None:
        self.child = child
        #: Events that nobody has taken yet.
        self.events: List[Said] = []
        #: How many times it is waited for, as long as it is busy.
        self.patience = 1
        self.last: Optional[Said] = None
        self._reader = reader
        self._timeout, self._boot_timeout = timeout, boot_timeout
        self._asked = 0
        self._deaf = False
        self._replies: Dict[str, Said] = {}

    @property
    def hello(self) -> Optional[Hello]:
        return self._reader.hello

    @property
    def hello_line(self) -> bytes:
        return self._reader.hello_line

    @property
    def wait(self) -> float:
        """How long to wait for the next thing."""
        return self._boot_timeout if self.last is None else self._timeout

    # --- down -------------------------------------------------------------------------

    def request(
        self,
        task: str,
        *args: Any,
        kwargs: Optional[Mapping[str, Any]] = None,
        id: Optional[str] = None,
        meta: Optional[Mapping[str, Any]] = None,
    ) -> str:
        """Write a request, and return its id."""
        id, line = self.line(task, *args, kwargs=kwargs, id=id, meta=meta)
        self.write(line)
        return id

    def line(
        self,
        task: str,
        *args: Any,
        kwargs: Optional[Mapping[str, Any]] = None,
        id: Optional[str] = None,
        meta: Optional[Mapping[str, Any]] = None,
    ) -> Tuple[str, bytes]:
        """A request that the caller will write, and its id."""
        self._asked += 1
        id = f"{self.child.pid}-Request-{self._asked}" if id is None else id
        meta = {"retries": 0, "queue": "celery", "redelivered": False, **(meta or {})}
        payload = {"task": task, "args": args, "kwargs": kwargs or {}, "meta": meta}
        self._reader.pending[id] = None
        return id, encode({"id": id, "payload": payload})

    def op(self, op: str, **fields: Any) -> None:
        self.write(encode({"op": op, **fields}))

    def write(self, data: bytes) -> None:
        deadline = time.monotonic() + self.wait * self.patience
        try:
            # If nobody reads any more, what it says or its end tells the rest.
            self._deaf = not self.child.write(data, deadline) or self._deaf
        except Late:
            raise Failure(f"it reads what it is sent, within {self.wait:g} s") from None

    def write_apart(self, data: bytes) -> None:
        """Write, and see that it is read before anything else is written."""
        self.write(data)
        try:
            self.child.wait_read(self._deadline())
        except Late:
            raise Failure("it reads what there is, also a part of a line") from None

    # --- up ---------------------------------------------------------------------------

    def ask(
        self,
        task: str,
        *args: Any,
        kwargs: Optional[Mapping[str, Any]] = None,
        id: Optional[str] = None,
        meta: Optional[Mapping[str, Any]] = None,
    ) -> Said:
        """The reply to a task."""
        return self.reply(self.request(task, *args, kwargs=kwargs, id=id, meta=meta))

    def reply(self, id: str) -> Said:
        """The reply to a request. Events are kept, and other replies too."""
        while id not in self._replies:
            self._hear_or_fail("a reply")
        return self._replies.pop(id)

    def first_reply(self) -> Said:
        """Whatever reply comes first."""
        while not self._replies:
            self._hear_or_fail("a reply")
        return self._replies.pop(next(iter(self._replies)))

    def event(self, op: str, id: Optional[str] = None) -> Said:
        """The next event of that kind; a reply to the request must not come first."""
        while True:
            for event in self.events:
                if event.op == op and event.id == id:
                    self.events.remove(event)
                    return event
            if id in self._replies:
                raise Failure(
                    f"the event {op} before the reply", self._replies[id].line
                )
            self._hear_or_fail(f"the event {op}")

    def greet(self) -> None:
        """Wait for its hello."""
        while self.hello is None:
            self._hear_or_fail("a hello")

    def next(self) -> Said:
        """Whatever it says next."""
        self._hear_or_fail("a reply")
        assert self.last is not None
        return self.last

    def hear_if_any(self) -> None:
        """Wait for whatever it says next, or its end."""
        try:
            self.hear()
        except Late:
            raise Silent(f"a word or an end within {self.wait:g} s") from None

    def hear_first(self) -> None:
        """Wait for whatever it says first."""
        self._hear_or_fail("a hello or a reply")

    def finish(self, since: Optional[float] = None) -> float:
        """Wait for its end and hear the rest. The seconds it took since it was told.

        It has more time than the rule says, as the machine may be slow.
        """
        since = time.monotonic() if since is None else since
        wait = max(END, self.wait)
        try:
            self.child.wait_end(since + wait)
        except Late:
            raise Failure(
                f"it ends within {END:g} s; it is still running after {wait:g} s",
                self.child.rest or (self.last.line if self.last else b""),
            ) from None
        while self.hear() is not None:
            pass
        if self.child.rest:
            self._reader.read_rest(self.child.rest)
        assert self.child.ended_at is not None
        return self.child.ended_at - since

    def end(self) -> float:
        """End its channel, and wait for its end: the seconds that it took."""
        since = time.monotonic()
        self.child.close_input()
        return self.finish(since)

    def hear(self) -> Optional[Said]:
        """The next reply or event, the hello too; None where it has ended.

        Raises:
            Late: it said nothing.
        """
        while True:
            line = self.child.take_line(self._deadline())
            if line is None:
                return None
            said = self._reader.read(line)
            if said is None:
                continue
            self.last = said
            if not said.op:
                assert said.id is not None
                self._replies[said.id] = said
            elif said.op != "hello":
                self.events.append(said)
            return said

    def _hear_or_fail(self, what: str) -> None:
        try:
            if self._hear_patiently() is not None:
                return
        except Late:
            why = "; it has closed its channel in" if self._deaf else ""
            text = f"{what} within {self.wait:g} s{why}"
            raise Silent(text, self.child.rest) from None
        code = self._exit_code()
        how = "it closed its channel" if code is None else f"it ended, {_exit(code)}"
        raise Failure(f"{what}; {how}", self.child.rest)

    def _exit_code(self) -> Optional[int]:
        """Of a child whose channel out has ended; None if it goes on without it."""
        try:
            return self.child.wait_end(time.monotonic() + END)
        except Late:
            return None

    def _hear_patiently(self) -> Optional[Said]:
        for _ in range(self.patience - 1):
            before = work(self.child.pid)
            try:
                return self.hear()
            except Late:
                if work(self.child.pid) - before < self.wait / 10:
                    raise
        return self.hear()

    def _deadline(self) -> float:
        return time.monotonic() + self.wait


def _exit(code: int) -> str:
    return f"exit status {code}" if code >= 0 else f"killed by signal {-code}"

"""What is said to one child and by it: requests in flight, replies, events.

Whatever breaks a rule without keeping the talk from going on is put down as an oddity,
so that one mistake of a child fails the scenario that is about it and no other.
"""

from __future__ import annotations

import json
import time
from typing import Any, Callable, Dict, List, Mapping, Optional, Set, Tuple

from ..errors import RemoteProtocolError
from ..messages import MAX_LINE, Hello, Status, hello_of, reply_of, told_of
from .child import Child, Late
from .said import Oddity, Said, encode, types_are_right
from .scenario import Failure

#: Seconds that a child has to end, by section 1 of the protocol.
END = 2.0


class Silent(Failure):
    """It is alive and says nothing."""


class Talk:
    """A child and what it has been asked.

    Arguments:
        note: is told of every oddity.
        timeout: seconds to wait for one thing that it should say or do.
        boot_timeout: seconds to wait as long as it has said nothing.
        greets: whether a hello is expected of it.
    """

    def __init__(
        self,
        child: Child,
        note: Callable[[Oddity, bytes], None],
        timeout: float,
        boot_timeout: float,
        max_line: int = MAX_LINE,
        greets: bool = True,
    ) -> None:
        self.child = child
        self.hello: Optional[Hello] = None
        self.hello_line = b""
        #: Events that nobody has taken yet.
        self.events: List[Said] = []
        #: How many times it is waited for, as long as it is busy.
        self.patience = 1
        self.last: Optional[Said] = None
        self._note = note
        self._timeout, self._boot_timeout = timeout, boot_timeout
        self._max_line = max_line
        self._greets = greets
        self._asked = 0
        self._deaf = False
        self._pending: Dict[str, None] = {}
        self._replied: Set[str] = set()
        self._replies: Dict[str, Said] = {}

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
        self._pending[id] = None
        return id, encode({"id": id, "payload": payload})

    def op(self, op: str, **fields: Any) -> None:
        self.write(encode({"op": op, **fields}))

    def write(self, data: bytes) -> None:
        try:
            # If nobody reads any more, what it says or its end tells the rest.
            self._deaf = not self.child.write(data, self._deadline()) or self._deaf
        except Late:
            raise Failure(f"it reads what it is sent, within {self.wait:g} s") from None

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
            self._note(Oddity.NOISE, self.child.rest)
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
            said = self._said(line)
            if said is not None:
                self.last = said
                if said.op not in ("", "hello"):
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
            before = self.child.cpu()
            try:
                return self.hear()
            except Late:
                if self.child.cpu() - before < self.wait / 10:
                    raise
        return self.hear()

    def _deadline(self) -> float:
        return time.monotonic() + self.wait

    # --- one line ---------------------------------------------------------------------

    def _said(self, line: bytes) -> Optional[Said]:
        if len(line) > self._max_line:
            self._note(Oddity.TOO_LONG, line)
        fields = self._object(line)
        if fields is None:
            return None
        try:
            if "op" in fields:
                return self._op(fields, line)
            return self._reply(fields, line)
        except RemoteProtocolError as exc:
            wrong = f"a line that is the protocol, not {exc}"
            raise Failure(wrong, line, mend="reply") from None

    def _object(self, line: bytes) -> Optional[Dict[str, Any]]:
        try:
            text = line.decode()
        except UnicodeDecodeError:
            self._note(Oddity.UTF8, line)
            text = line.decode(errors="replace")
        constants: List[str] = []
        try:
            fields = json.loads(text, parse_constant=constants.append)
        except (ValueError, RecursionError):
            fields = None
        if not isinstance(fields, dict):
            self._note(self._noise, line)
            if b'"status"' in line and line.endswith(b"}"):
                # Nothing else will come for whoever waits for this.
                raise Failure("a reply that is one JSON object", line)
            return None
        if not ("op" in fields or "id" in fields or self._is_reply(fields)):
            self._note(self._noise, line)
            return None
        if constants:
            self._note(Oddity.NUMBER, line)
        return fields

    def _is_reply(self, fields: Dict[str, Any]) -> bool:
        # A log in JSON may have a status too.
        return self.hello is None or fields.get("status") in set(Status)

    @property
    def _noise(self) -> Oddity:
        new = self._greets and self.hello is None and not self._replied
        return Oddity.NOISE_BEFORE_HELLO if new else Oddity.NOISE

    def _op(self, fields: Dict[str, Any], line: bytes) -> Optional[Said]:
        if fields["op"] == "hello":
            return self._greeted(fields, line)
        told = told_of(fields)
        if told is None:
            known = fields["op"] in ("progress", "publish")
            if known:
                self._note(Oddity.STRAY_EVENT, line)
            return None
        if self.hello is None:
            self._note(Oddity.UNASKED, line)
            return None
        if told.id is not None and told.id not in self._pending:
            self._note(Oddity.STRAY_EVENT, line)
            return None
        return Said(told.id, fields, line)

    def _greeted(self, fields: Dict[str, Any], line: bytes) -> Optional[Said]:
        if self.hello is not None:
            self._note(Oddity.SECOND_HELLO, line)
            return None
        if self._replied:
            self._note(Oddity.LATE_HELLO, line)
            return None
        try:
            self.hello = hello_of(fields)
        except RemoteProtocolError as exc:
            raise Failure(f"no {exc}", line, mend="hello") from None
        self.hello_line = line
        return Said(None, fields, line)

    def _reply(self, fields: Dict[str, Any], line: bytes) -> Optional[Said]:
        id = reply_of(fields, self.hello is not None).id
        if id is None:
            if not self._pending:
                self._note(Oddity.UNASKED, line)
                return None
            self._note(Oddity.NO_ID, line)
            id = next(iter(self._pending))
        if id in self._replied and id not in self._pending:
            self._note(Oddity.SECOND_REPLY, line)
            return None
        if id not in self._pending:
            raise Failure("a reply to the id that was asked", line, mend="ids")
        if not types_are_right(fields):
            self._note(Oddity.FIELDS, line)
        del self._pending[id]
        self._replied.add(id)
        self._replies[id] = said = Said(id, fields, line)
        return said


def _exit(code: int) -> str:
    return f"exit status {code}" if code >= 0 else f"killed by signal {-code}"

"""What the lines of one child mean, read as the worker reads them, and more leniently.

Whatever breaks a rule without keeping the talk from going on is put down as an oddity,
so that one mistake of a child fails the scenario that is about it and no other.
"""

from __future__ import annotations

import json
from typing import Any, Callable, Dict, List, Optional, Set

from ..errors import RemoteProtocolError
from ..messages import MAX_LINE, Hello, Op, Status, hello_of, reply_of, told_of
from .said import Oddity, Said, types_are_right
from .scenario import Failure


class Reader:
    """One child's lines.

    Arguments:
        note: is told of every oddity.
        greets: whether a hello is expected.
    """

    def __init__(
        self,
        note: Callable[[Oddity, bytes], None],
        max_line: int = MAX_LINE,
        greets: bool = True,
    ) -> None:
        self.hello: Optional[Hello] = None
        self.hello_line = b""
        #: Ids of requests that it has not replied to, the oldest first.
        self.pending: Dict[str, None] = {}
        self._replied: Set[str] = set()
        self._note = note
        self._max_line = max_line
        self._greets = greets

    def read(self, line: bytes) -> Optional[Said]:
        """What a line says; None if it says nothing that counts.

        Raises:
            Failure: nothing would make sense after it.
        """
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

    def read_rest(self, rest: bytes) -> None:
        """What came after its last line."""
        self._note(Oddity.NOISE, rest)

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
        return self.hello is None or fields.get("status") in list(Status)

    @property
    def _noise(self) -> Oddity:
        new = self._greets and self.hello is None and not self._replied
        return Oddity.NOISE_BEFORE_HELLO if new else Oddity.NOISE

    def _op(self, fields: Dict[str, Any], line: bytes) -> Optional[Said]:
        if fields["op"] == "hello":
            return self._greeted(fields, line)
        if self.hello is None:
            self._note(Oddity.UNASKED, line)
            return None
        told = told_of(fields)
        if told is None and fields["op"] not in (Op.PROGRESS, Op.PUBLISH):
            return None  # a newer child may know more than we do
        if told is None or (told.id is not None and told.id not in self.pending):
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
            if not self.pending:
                self._note(Oddity.UNASKED, line)
                return None
            self._note(Oddity.NO_ID, line)
            id = next(iter(self.pending))
        if id in self._replied and id not in self.pending:
            self._note(Oddity.SECOND_REPLY, line)
            return None
        if id not in self.pending:
            raise Failure("a reply to the id that was asked", line, mend="ids")
        if not types_are_right(fields):
            self._note(Oddity.FIELDS, line)
        del self.pending[id]
        self._replied.add(id)
        return Said(id, fields, line)

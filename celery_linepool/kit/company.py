"""The children of one run, and what is known of them."""

from __future__ import annotations

import os
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Callable, ContextManager, Dict, List, Optional, Tuple

from ..messages import MAX_LINE, PROTOCOL, Hello
from .child import Child, Late
from .languages import language_of
from .reader import Reader
from .said import Odd, Oddity
from .scenario import Failure
from .talk import Silent, Talk

CHECK = "linepool.check."
ECHO = CHECK + "echo"
#: The files that serve the check tasks, one for each helper library.
CHECK_FOLDER = os.path.join(os.path.dirname(os.path.dirname(__file__)), "sdk", "check")


@dataclass(frozen=True)
class Options:
    """What the user gave."""

    command: Tuple[str, ...]
    cwd: Optional[str] = None
    env: Dict[str, str] = field(default_factory=dict)
    task: str = ECHO
    timeout: float = 10.0
    boot_timeout: float = 60.0


class Mute(Exception):
    """The child ended before it said anything."""


class Company:
    """The children of one run: what is known of all of them, and one that is shared.

    Arguments:
        undisturbed: holds back signals while a child starts that nobody knows yet.
    """

    def __init__(
        self,
        options: Options,
        undisturbed: Callable[[], ContextManager[object]] = nullcontext,
    ) -> None:
        self.options = options
        self._undisturbed = undisturbed
        self.hello: Optional[Hello] = None
        self.hello_line = b""
        self.met = False
        self.met_at: Optional[float] = None
        self.oddities: List[Odd] = []
        #: Processes that outlived a child which ended by itself.
        self.left: List[str] = []
        #: Whether it serves the check tasks; asked where its hello does not say so.
        self.serves_echo = False
        #: The scenario that is being played.
        self.now = ""
        self._shared: Optional[Talk] = None
        self._own: List[Talk] = []

    @property
    def language(self) -> str:
        said = self.hello.language if self.hello else ""
        return language_of(self.options.command, said)

    def serves(self, task: str) -> bool:
        """Whether it serves a check task, named without the prefix."""
        if self.hello is not None and self.hello.tasks:
            return CHECK + task in self.hello.tasks
        return self.serves_echo

    def start(self, max_line: int = MAX_LINE, **changes: Optional[str]) -> Talk:
        """A new child, closed after the scenario. A variable of None is not set."""
        variables = {
            "LINEPOOL_PROTOCOL": str(PROTOCOL),
            "LINEPOOL_CHANNEL": "stdio",
            "LINEPOOL_MAX_LINE": str(max_line),
            "LINEPOOL_CHECK": CHECK_FOLDER,
            **changes,
        }
        env = {**os.environ, **self.options.env}
        for name, value in variables.items():
            env.pop(name, None)
            if value is not None:
                env[name] = value
        channel = variables["LINEPOOL_CHANNEL"] or "stdio"
        waits = self.options.timeout, self.options.boot_timeout
        # At the first meeting nobody knows yet.
        greets = self.hello is not None and variables["LINEPOOL_PROTOCOL"] == "2"
        reader = Reader(self._note, max_line, greets or not self.met)
        with self._undisturbed():
            child = Child(self.options.command, env, self.options.cwd, channel)
            talk = Talk(child, reader, *waits)
            self._own.append(talk)
        return talk

    def boot(self, **changes: Any) -> Talk:
        """A new child that is ready, closed after the scenario."""
        talk = self.start(**changes)
        if self.hello is not None:
            talk.greet()
        return talk

    def shared(self) -> Talk:
        """A child that is ready and stays for the next scenario."""
        if self._shared is None:
            self._shared = self.boot()
            self._own.remove(self._shared)
        self._shared.events.clear()
        self._shared.patience = 1
        return self._shared

    def meet(self) -> None:
        """Find out what the command speaks: a request is written while it boots.

        Raises:
            NotStarted: there is no such command.
            Mute: it ended at once.
            Failure: it says nothing.
        """
        talk = self.start()
        id = talk.request(self.options.task)
        try:
            talk.hear_first()
            self.hello, self.hello_line = talk.hello, talk.hello_line
            self.met, self.met_at = True, time.monotonic()
            self._rename_noise()
            talk.reply(id)
        except Silent as silent:
            # After a hello it may only have lost what was written while it booted.
            if talk.hello is None:
                raise unflushed(talk, silent) from None
            return
        except Failure:
            if talk.last is None and talk.child.ended_at is not None:
                raise Mute(_last_words(talk)) from None
            raise
        self._share(talk)
        if self.hello is None or not self.hello.tasks:
            self._try_echo(talk)

    def _rename_noise(self) -> None:
        """Where no hello comes, nothing is before it."""
        if self.hello is None:
            noise = [Odd(Oddity.NOISE, odd.line, odd.scenario) for odd in self.oddities]
            self.oddities = noise

    def _try_echo(self, talk: Talk) -> None:
        reply = talk.ask(ECHO, 1, kwargs={"a": 2})
        self.serves_echo = reply.result == {"args": [1], "kwargs": {"a": 2}}

    def _share(self, talk: Talk) -> None:
        self._shared = talk
        self._own.remove(talk)

    def begin(self, scenario: str) -> None:
        """A scenario begins: what was said before is not its business."""
        self.now = scenario
        if self._shared is not None:
            self._shared.child.transcript.clear()
            self._shared.child.stderr.clear()

    def replace_shared(self) -> None:
        """The shared child is not to be trusted any more."""
        if self._shared is not None:
            self._shared.child.close()
            self._shared = None

    def take_shared(self) -> Talk:
        """The shared child, for a scenario that it does not survive."""
        talk = self.shared()
        self._own.append(talk)
        self._shared = None
        return talk

    def close_own(self) -> None:
        while self._own:
            self._own.pop().child.close()

    def close(self) -> None:
        self.close_own()
        self.replace_shared()

    def talks(self) -> List[Talk]:
        """Whom the scenario may have spoken to, the likeliest last."""
        shared = [self._shared] if self._shared is not None else []
        return [*shared, *self._own]

    def forget(self, scenario: str) -> None:
        """What was odd in a scenario: it need not be told twice."""
        self.oddities = [odd for odd in self.oddities if odd.scenario != scenario]

    def _note(self, kind: Oddity, line: bytes) -> None:
        self.oddities.append(Odd(kind, line[:4096], self.now))


def unflushed(talk: Talk, silent: Failure) -> Failure:
    """Why a child that is alive says nothing: does it speak when its channel ends?"""
    talk.child.close_input()
    try:
        said = talk.hear()
    except (Late, Failure):
        return silent
    if said is None:
        return Failure(silent.expected, talk.child.rest)
    return Failure(
        "a line as soon as there is something to say; it came only when the channel in "
        "ended: it was not flushed, or all input is read before any work is done",
        said.line,
        mend="flush",
    )


def _last_words(talk: Talk) -> str:
    code = talk.child.exit_code
    how = "closed its channel" if code is None else f"ended with {code}"
    stderr = talk.child.stderr.decode(errors="replace").strip()
    tail = "\n".join(stderr.splitlines()[-20:])
    return f"it {how} before it said anything" + (f":\n{tail}" if tail else "")

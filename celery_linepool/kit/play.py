"""What a scenario gets: children of the user's command, and what is asked of them."""

from __future__ import annotations

from typing import Any, List, Optional

import psutil

from ..messages import Hello
from . import processes
from .company import CHECK, ECHO, Company
from .said import Oddity, Said
from .scenario import Failure, Scenario, Untried
from .talk import END, Talk
from .values import difference


class Play:
    """One scenario that is being played."""

    def __init__(self, company: Company, scenario: Scenario) -> None:
        self.company = company
        self.options = company.options
        self.task = company.options.task
        self.timeout = company.options.timeout
        self.language = company.language
        self.shared = company.shared
        self.boot = company.boot
        self.start = company.start
        self.take_shared = company.take_shared
        #: What is worth a word although it passed.
        self.notes: List[str] = []
        self._scenario = scenario

    @property
    def hello(self) -> Hello:
        assert self.company.hello is not None
        return self.company.hello

    @property
    def is_original(self) -> bool:
        return self.company.hello is None

    def require(self) -> None:
        """Raise `Untried` if the child cannot be played this scenario."""
        row = self._scenario
        if self.is_original and not row.original:
            raise Untried("it says no hello: a child of the original protocol")
        for task in row.tasks:
            self.needs_task(task)
        for feature in row.features:
            if feature not in self.hello.features:
                raise Untried(f"its hello does not name the feature {feature!r}")
        if row.inflight > 1 and self.hello.inflight < row.inflight:
            raise Untried(f"its hello says inflight {self.hello.inflight}")

    def needs_task(self, task: str) -> None:
        if not self.company.serves(task):
            raise Untried(f"it does not serve {CHECK}{task}")

    def check(self, talk: Talk, task: str, *args: Any, **options: Any) -> Said:
        """The reply to a check task."""
        return talk.ask(CHECK + task, *args, **options)

    def ask(self, talk: Talk, **options: Any) -> Said:
        """The reply to the harmless task."""
        return talk.ask(self.task, **options)

    def echo(self, talk: Talk, *args: Any, **kwargs: Any) -> Said:
        """Arguments there and back; just a reply, where the child has no echo."""
        if not self.company.serves("echo"):
            self.notes.append(f"only that it replies: it does not serve {ECHO}")
            return talk.ask(self.task, *args, kwargs=kwargs)
        reply = talk.ask(ECHO, *args, kwargs=kwargs).expect("ok")
        self.same({"args": list(args), "kwargs": kwargs}, reply)
        return reply

    def same(self, expected: Any, reply: Said) -> None:
        words = difference(expected, reply.result)
        if words is not None:
            raise Failure(f"the result has {words}", reply.line)

    def end(self, talk: Talk, since: Optional[float] = None) -> None:
        """It ends: with its channel now, or because of what it was told at `since`."""
        family = talk.child.family()
        took = talk.end() if since is None else talk.finish(since)
        if took > END:
            self.notes.append(f"it took {took:.1f} s; the rule is {END:g} s")
        survivors = processes.survivors(talk.child.pid, family)
        # A moment for what is just ending, unless it is known that it does not.
        wait = 0 if self.company.left else END
        for process in psutil.wait_procs(survivors, wait)[1]:
            self.company.left.append(f"process {process.pid}")
            processes.kill(process)

    def end_or_untried(self, talk: Talk) -> None:
        """For what can be seen only at its end; that it ends is another scenario."""
        try:
            self.end(talk)
        except Failure as failure:
            raise Untried(f"expected {failure.expected}") from None

    def none_of(self, kind: Oddity, expected: str) -> None:
        """Fail if a child of this run ever said such a thing."""
        for odd in self.company.oddities:
            if odd.kind is kind:
                where = f" (in {odd.scenario})" if odd.scenario else ""
                raise Failure(expected + where, odd.line)

    def none_now(self, kind: Oddity, expected: str, text: bytes = b"") -> None:
        """Fail if a child said such a thing, with that text, in this scenario."""
        for odd in self.company.oddities:
            here = odd.scenario == self.company.now
            if odd.kind is kind and here and text in odd.line:
                raise Failure(expected, odd.line)

    def forget_now(self) -> None:
        """What was odd so far in this scenario is another one's business."""
        self.company.forget(self.company.now)

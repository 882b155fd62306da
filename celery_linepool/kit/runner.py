"""Plays scenarios, one after the other, and says how each went."""

from __future__ import annotations

import enum
import time
from dataclasses import dataclass, field
from typing import Callable, List, Optional, Sequence

from ..messages import SHOWN, show
from .child import NotStarted
from .company import Company
from .play import Play
from .remedies import remedy
from .scenario import Failure, Scenario, Untried
from .scenarios import ALL, GATES
from .talk import Talk

#: Lines of stderr that a failure shows.
LAST_LINES = 5


class Outcome(str, enum.Enum):
    PASSED = "passed"
    FAILED = "FAILED"
    UNTRIED = "not tried"


@dataclass
class Result:
    """How one scenario went; what follows the reason is of a failure."""

    scenario: Scenario
    outcome: Outcome
    seconds: float = 0.0
    notes: List[str] = field(default_factory=list)
    #: Why it was not tried.
    reason: str = ""
    expected: str = ""
    read: str = ""
    written: str = ""
    stderr: str = ""
    mend: str = ""
    #: Whether it is worth a line of its own.
    told: bool = True


Tell = Callable[[Result], None]


def play_all(company: Company, rows: Sequence[Scenario], tell: Tell) -> List[Result]:
    """Play these scenarios. Where nothing works, `tell` hears of the first one only.

    Raises:
        NotStarted, Mute: there is no child to play with.
    """
    results: List[Result] = []
    stop = ""

    def add(result: Result) -> None:
        results.append(result)
        tell(result)

    try:
        company.meet()
    except Failure as failure:
        name = "hello" if failure.mend == "hello" else "replies"
        gate = next(row for row in ALL if row.id == name)
        add(_failed(company, gate, failure))
        stop = gate.id
    company.close_own()
    for row in rows:
        if not stop:
            add(play_one(company, row))
            if row.id in GATES and results[-1].outcome is Outcome.FAILED:
                stop = row.id
        elif row.id != stop:
            reason = f"{stop} failed: mend that first"
            results.append(Result(row, Outcome.UNTRIED, reason=reason, told=False))
    return results


def play_one(company: Company, row: Scenario) -> Result:
    """Play one scenario, and leave the children as the next one wants them."""
    company.begin(row.id)
    play = Play(company, row)
    start = time.monotonic()
    try:
        play.require()
        row.play(play)
        result = Result(row, Outcome.PASSED, notes=play.notes)
    except Untried as untried:
        result = Result(row, Outcome.UNTRIED, reason=str(untried))
    except (Failure, NotStarted) as exc:
        failure = exc if isinstance(exc, Failure) else Failure(str(exc))
        result = _failed(company, row, failure)
        company.forget(row.id)
        company.replace_shared()
    finally:
        company.close_own()
    result.seconds = time.monotonic() - start
    return result


def _failed(company: Company, row: Scenario, failure: Failure) -> Result:
    talks = company.talks()
    talk = talks[-1] if talks else None
    return Result(
        row,
        Outcome.FAILED,
        expected=failure.expected,
        read=_read(failure, talk),
        written=_written(talk),
        stderr=_stderr(talk),
        mend=remedy(failure.mend or row.mend, company.language),
    )


def _read(failure: Failure, talk: Optional[Talk]) -> str:
    line = failure.read
    if line is None and talk is not None and talk.last is not None:
        line = talk.last.line
    return show(line) if line else "nothing"


def _written(talk: Optional[Talk]) -> str:
    pieces = (
        [piece.data for piece in talk.child.transcript if piece.down] if talk else []
    )
    return show(pieces[-1]) if pieces else "nothing"


def _stderr(talk: Optional[Talk]) -> str:
    if talk is None:
        return ""
    lines = talk.child.stderr.decode(errors="replace").splitlines()
    return "\n".join(line[:SHOWN] for line in lines[-LAST_LINES:])

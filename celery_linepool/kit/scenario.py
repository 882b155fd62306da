"""What a scenario is: a row of data, and a short function that plays it."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Callable, List, Optional, Tuple

if TYPE_CHECKING:
    from .play import Play


class Level(str, enum.Enum):
    """How much it counts, in the words of RFC 2119."""

    MUST = "MUST"
    SHOULD = "SHOULD"
    MAY = "MAY"


MUST, SHOULD, MAY = Level


class Failure(Exception):
    """The child did something else.

    Arguments:
        expected: what should have happened.
        read: the line or the bytes that it said instead; without it, the last ones.
        mend: what to look at, if that is not what the scenario names.
    """

    def __init__(
        self, expected: str, read: Optional[bytes] = None, mend: Optional[str] = None
    ) -> None:
        super().__init__(expected)
        self.expected = expected
        self.read = read
        self.mend = mend


class Untried(Exception):
    """It cannot be played with this child; the message says why."""


@dataclass(frozen=True)
class Scenario:
    id: str
    level: Level
    #: The rule of docs/protocol.md that it proves, such as ``1.5``.
    rule: str
    #: What it means for a worker when the rule is not followed.
    why: str
    #: The entry of remedies.ini.
    mend: str
    play: Callable[["Play"], None]
    #: Whether a child of the original protocol is played this as well.
    original: bool = False
    #: Check tasks, without their prefix, and features that it cannot do without.
    tasks: Tuple[str, ...] = ()
    features: Tuple[str, ...] = ()
    inflight: int = 1


class Rows(List[Scenario]):
    """The scenarios of one file, in their order."""

    def add(
        self,
        id: str,
        level: Level,
        rule: str,
        mend: str,
        original: bool = False,
        tasks: Tuple[str, ...] = (),
        features: Tuple[str, ...] = (),
        inflight: int = 1,
    ) -> Callable[[Callable[["Play"], None]], Callable[["Play"], None]]:
        """Make a row of a function; its docstring says why the rule is there."""

        def register(play: Callable[["Play"], None]) -> Callable[["Play"], None]:
            why = " ".join((play.__doc__ or "").split())
            needs = (original, tasks, features, inflight)
            self.append(Scenario(id, level, rule, why, mend, play, *needs))
            return play

        return register

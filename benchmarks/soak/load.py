"""The tasks of a soak: sent at a steady rate, and each of them accounted for."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Dict, List, Sequence

import redis

#: Tasks that may be open at a time; nothing more is sent while so many are.
MOST_OPEN = 500
#: Pools whose children work as they should, and leave a line for each task that they
#: have done; of each, tasks that are acknowledged early and late.
HONEST = ("one.early", "one.late", "many.early", "many.late")
#: Pools whose children do what they are told to.
FAULTY = ("original", "protocol2", "inflight8")
PYTHON = "proj.double"
#: What may become of a task whose child was killed, or stopped.
LOST = {"WorkerLostError", "TimeLimitExceeded"}


class Load:
    """Sends tasks, hears of their ends, and says which promise was broken.

    Arguments:
        send: sends a task by name, id and arguments.
        results: the URL of the result backend.
        folder: where children leave their lines.
        faults: what a faulty child can be told to do.
        fault_part: the part of the tasks that tell one to.
    """

    def __init__(
        self,
        send: Any,
        results: str,
        folder: Path,
        faults: Sequence[str],
        fault_part: float,
        chance: random.Random,
    ) -> None:
        self._send = send
        self._client = redis.Redis.from_url(results)
        self._effects = folder / "effects"
        self._gate = folder / "gate"
        self._gate.touch()  # open: a faulty child need not wait
        self._faults = faults
        self._fault_part = fault_part
        self._chance = chance
        self.names: List[str] = []
        #: Number of the task, and when it was sent.
        self.open: Dict[int, float] = {}
        self.ends: Dict[int, str] = {}
        self.faults: Counter[str] = Counter()
        #: Seconds from sent to stored, of honest tasks since they were asked for.
        self._latencies: List[float] = []

    def send(self, count: int) -> None:
        """So many tasks more, if not too many are open."""
        for _ in range(min(count, MOST_OPEN - len(self.open))):
            number = len(self.names)
            name, args = self._next(number)
            self.names.append(name)
            self.open[number] = time.time()
            self._send(name, id_of(number), args)

    def _next(self, number: int) -> tuple[str, List[Any]]:
        if self._chance.random() < self._fault_part:
            fault = self._chance.choice(self._faults)
            self.faults[fault] += 1
            pool = self._chance.choice(FAULTY)
            return f"{pool}.fault", [str(self._gate), fault]
        kind = self._chance.random()
        if kind < 0.1:
            return PYTHON, [number]
        if kind < 0.25:
            return f"{self._chance.choice(FAULTY)}.pid", []
        return self._chance.choice(HONEST), [str(self._effects), number]

    def look(self) -> None:
        """Take note of the tasks that have ended."""
        numbers = list(self.open)
        if not numbers:
            return
        keys = [f"celery-task-meta-{id_of(number)}" for number in numbers]
        ended = []
        for number, key, value in zip(numbers, keys, self._client.mget(keys)):
            if value is None:
                continue
            meta = json.loads(value)
            if meta["status"] not in ("SUCCESS", "FAILURE"):
                continue
            ended.append(key)
            self._ended(number, meta)
        if ended:
            self._client.delete(*ended)

    def _ended(self, number: int, meta: Dict[str, Any]) -> None:
        sent = self.open.pop(number)
        failed = meta["status"] == "FAILURE"
        self.ends[number] = meta["result"]["exc_type"] if failed else "SUCCESS"
        if not failed and self.names[number] in HONEST:
            self._latencies.append(seconds_since_1970(meta["date_done"]) - sent)

    def latencies(self) -> List[float]:
        """Those of the honest tasks that have ended since this was asked last."""
        found, self._latencies = self._latencies, []
        return found

    # --- at the end -------------------------------------------------------------------

    def counts(self) -> Dict[str, Any]:
        effects = self._done()
        twice = [n for n, times in effects.items() if times > 1]
        return {
            "sent": len(self.names),
            "ends": dict(Counter(self.ends.values())),
            "ran twice, late": sum(self._is_late(n) for n in twice),
            "ran twice, early": sum(not self._is_late(n) for n in twice),
            "faults": dict(sorted(self.faults.items())),
        }

    def broken(self, cuts: int, slots: int) -> List[str]:
        """Promises that were not kept.

        Arguments:
            cuts: how often the worker lost its broker. What is acknowledged early runs
                twice if its acknowledgement is lost with the connection.
            slots: how many tasks can be under way then.
        """
        effects = self._done()
        found = [f"{self._tell(number)} has not ended" for number in self.open]
        early_twice = []
        for number, end in self.ends.items():
            if self.names[number] not in HONEST:
                continue
            times = effects[number]
            if end == "SUCCESS" and not times:
                found.append(f"{self._tell(number)}: SUCCESS, and was not done")
            if end != "SUCCESS" and end not in LOST:
                found.append(f"{self._tell(number)}: {end}")
            if self._is_late(number) and end == "WorkerLostError":
                found.append(f"{self._tell(number)}: its message was not given back")
            if times > 1 and not self._is_late(number):
                early_twice.append(self._tell(number))
        if len(early_twice) > cuts * slots:
            found.append(f"ran twice: {', '.join(early_twice)}")
        return found

    def _done(self) -> Counter[int]:
        if not self._effects.exists():
            return Counter()
        lines = self._effects.read_text().splitlines()
        return Counter(int(line.split()[0]) for line in lines)

    def _is_late(self, number: int) -> bool:
        return self.names[number].endswith(".late")

    def _tell(self, number: int) -> str:
        return f"{self.names[number]}[{id_of(number)}]"

    def close(self) -> None:
        self._client.close()


def id_of(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012}"


def seconds_since_1970(text: str) -> float:
    when = datetime.fromisoformat(text)
    if when.tzinfo is None:
        when = when.replace(tzinfo=timezone.utc)
    return when.timestamp()

"""Who is compared, and how a row names one: `linepool +inflight=64 concurrency=1`."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Contender:
    """A way to have a task done by code that is not Python."""

    what: str
    #: Its `-P`; None: it is no Celery worker.
    pool: Optional[str] = "threads"
    #: Whether the work is done by a server, which is there already.
    served: bool = False


CONTENDERS: Mapping[str, Contender] = {
    "linepool": Contender("this pool", "celery_linepool:LinePool"),
    "threads": Contender(
        "Celery's thread pool; each thread writes to a child of its own and waits"
    ),
    "prefork": Contender(
        "Celery's prefork pool; each process has a child of its own", "prefork"
    ),
    "solo": Contender(
        "Celery's solo pool: its main thread writes to one child, and waits", "solo"
    ),
    "process": Contender("a thread starts the program for each task"),
    "http": Contender(
        "a thread asks a server of the same code over HTTP, on a connection that it "
        "keeps: Node's own, or Puma with two processes of five threads",
        served=True,
    ),
    "sidekiq": Contender(
        "Sidekiq with as many threads, on the same Rails, fed through its own queue",
        None,
    ),
    "null": Contender(
        "a pool that calls Celery's callbacks and does nothing: what Celery allows",
        "custom",
    ),
}


@dataclass(frozen=True)
class Child:
    """The same work in a language."""

    command: Tuple[str, ...]
    #: The name of the server that does it over HTTP, and of the folder it runs in.
    http: Optional[str] = None
    folder: Optional[str] = None


CHILDREN: Mapping[str, Child] = {
    "perl": Child(("perl", str(HERE / "children" / "work.pl"))),
    "ruby": Child(("ruby", str(HERE / "children" / "work.rb"))),
    "node": Child(("node", str(HERE / "children" / "work.cjs")), "node"),
    "rails": Child(("bin/linepool",), "puma", "rails"),
}


@dataclass
class Case:
    """What is measured: one contender in one situation."""

    contender: str
    #: Names of the site's servers.
    broker: str = "rabbitmq"
    results: Optional[str] = None
    child: str = "perl"
    concurrency: int = 4
    workers: int = 1
    tasks: int = 8000
    args: List[Any] = field(default_factory=list)
    settings: Dict[str, Any] = field(default_factory=dict)
    prefetch: int = 8
    #: Tasks per second that are sent; None: all of them wait in the queue before.
    pace: Optional[float] = None
    #: Whether the worker is asked meanwhile if it lives.
    ping: bool = False
    #: Of a part without a worker: whether the child runs on a core of its own.
    apart: bool = True


def case_of(name: str, **situation: Any) -> Case:
    """The case that a contender's name stands for.

    Its words change the situation: `child=ruby` a field of `Case`, and `+inflight=64`
    the setting `linepool_inflight`.
    """
    contender, *words = name.split()
    settings: Dict[str, Any] = dict(situation.pop("settings", {}))
    for word in words:
        key, _, value = word.partition("=")
        if key.startswith("+"):
            settings[f"linepool_{key[1:]}"] = _literal(value)
        else:
            situation[key] = _literal(value)
    return Case(contender, settings=settings, **situation)


def _literal(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text

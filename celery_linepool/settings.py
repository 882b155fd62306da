"""The settings of every pool, read from ``app.conf`` and checked once, at start.

Whatever Celery has a setting for is not here: time limits, ``worker_concurrency``,
``worker_prefetch_multiplier`` and the rest keep their names and their meaning.
"""

from __future__ import annotations

import difflib
import fnmatch
import glob
import os
from dataclasses import dataclass, field, fields
from typing import Any, Dict, List, Mapping, Optional, Tuple, Union

import click
from celery.exceptions import ImproperlyConfigured

from . import cores
from .checks import CHECKS
from .messages import MAX_LINE, PROTOCOL
from .protocol import Handshake, Stray

PREFIX = "linepool_"
#: Settings that are of no single pool.
OF_THE_WORKER = {
    "linepool_pools",
    "linepool_metrics",
    "linepool_one_core",
    "linepool_buffered_broker",
}
#: Variables that a child gets with ``inherit_env = False``.
BASIC_ENV = ("PATH", "HOME", "LANG", "TZ")


class SettingError(ImproperlyConfigured, click.ClickException):  # type: ignore[misc]
    """A setting is wrong. One sentence that names it; the worker does not start.

    As a ``ClickException`` it ends the ``celery`` command with that sentence instead
    of a traceback.
    """

    def __init__(self, setting: str, problem: str) -> None:
        click.ClickException.__init__(self, f"{setting}: {problem}")


@dataclass(frozen=True)
class PoolSettings:
    """One pool: what to run, for which tasks, and within which limits."""

    name: str
    #: The program and its arguments. No shell looks at it.
    command: Tuple[str, ...]
    #: Globs of the task names that this pool serves.
    tasks: Tuple[str, ...] = ()
    #: Queues whose tasks this pool serves unless a glob or a stub says otherwise.
    queues: Tuple[str, ...] = ()
    #: Children.
    size: int = 1
    #: Whether that is the worker's ``-c``, and moves with it.
    follows: bool = False
    cwd: Optional[str] = None
    env: Mapping[str, str] = field(default_factory=dict)
    inherit_env: bool = True
    user: Union[str, int, None] = None
    group: Union[str, int, None] = None
    umask: Optional[int] = None
    #: Seconds for one task where Celery sets no time limit. Ten minutes is what web
    #: servers and job systems call hung; without any limit one lost reply would
    #: occupy its child for ever.
    timeout: float = 600.0
    #: Seconds from the polite stop to SIGKILL; half-way there is SIGTERM. Container
    #: schedulers allow 10 to 30 s in all.
    stop_timeout: float = 10.0
    #: Longest line in bytes, either way.
    max_line: int = MAX_LINE
    #: Tasks at once in one child, if its hello allows as many.
    inflight: int = 1
    #: Whether children say hello.
    handshake: Handshake = Handshake.AUTO
    #: Seconds from the start of a child to its hello, where that is waited for.
    boot_timeout: float = 60.0
    #: Seconds from a cancel to SIGKILL, where there is a choice: half of what container
    #: schedulers allow for a stop.
    cancel_grace: float = 5.0
    #: What a line is that is no protocol.
    stdout: Stray = Stray.AUTO
    #: "stdio"; or "fd": the descriptors 3 and 4.
    channel: str = "stdio"
    #: "log": each line to the logger ``celery_linepool.child.<pool>``; "inherit".
    stderr: str = "log"
    #: Seconds that a child lives, or stays idle, before it is recycled.
    max_lifetime: Optional[float] = None
    idle_timeout: Optional[float] = None
    #: KiB that the process tree of a child may use; above, it is killed at once.
    memory_limit: Optional[int] = None
    #: Children that one task may take with it before it is not run again. Three
    #: tell a bad task from a bad moment, and cost three boots.
    max_crashes: int = 3
    #: What becomes of it: "fail", or "reject" to the broker's dead-letter queue.
    on_poison: str = "fail"
    #: Sent to the child at a soft time limit; None for nothing but the log line.
    soft_signal: Optional[int] = None
    #: Asks the child for its stack before it is killed for a time limit.
    dump_signal: Optional[int] = None
    #: Children that boot at the same time; None for all.
    max_boots: Optional[int] = None
    #: At the start of the worker: go on trying, instead of not starting.
    wait_for_boot: bool = False
    nice: Optional[int] = None
    #: Resource limits by name, such as {"nofile": 1024} or (soft, hard).
    rlimits: Mapping[int, Tuple[int, int]] = field(default_factory=dict)
    #: A file; when it is touched, the pool is reset.
    reset_file: Optional[str] = None
    #: Files, folders and globs below the children's working directory: for development,
    #: where a change of the code is to be seen at once.
    watch: Tuple[str, ...] = ()

    def environment(self, slot: int = 1, generation: int = 0) -> Dict[str, str]:
        """The environment that a child of this pool gets."""
        if self.inherit_env:
            inherited = dict(os.environ)
        else:
            inherited = {k: os.environ[k] for k in BASIC_ENV if k in os.environ}
        original = self.handshake is Handshake.NONE
        return {
            **inherited,
            **self.env,
            "LINEPOOL_PROTOCOL": "1" if original else str(PROTOCOL),
            "LINEPOOL_POOL": self.name,
            "LINEPOOL_SLOT": str(slot),
            "LINEPOOL_GENERATION": str(generation),
            "LINEPOOL_MAX_LINE": str(self.max_line),
            "LINEPOOL_CHANNEL": self.channel,
        }

    @property
    def watched(self) -> Tuple[str, ...]:
        """What resets the pool when it changes."""
        touched = () if self.reset_file is None else (glob.escape(self.reset_file),)
        return (*self.watch, *touched)

    def serves(self, name: str) -> bool:
        """Whether one of its globs covers this task name."""
        return any(fnmatch.fnmatchcase(name, glob) for glob in self.tasks)


assert set(CHECKS) == {f.name for f in fields(PoolSettings)} - {"name", "follows"}


def read(conf: Any, concurrency: int) -> Dict[str, PoolSettings]:
    """All pools by name, in the order they were written.

    Arguments:
        conf: the app's configuration.
        concurrency: the worker's ``-c``, the size of a pool that names none.

    Raises:
        SettingError: the first thing that is wrong.
    """
    _refuse_unknown(conf)
    shared = {
        option: conf[PREFIX + option]
        for option in CHECKS
        if conf.get(PREFIX + option) is not None
    }
    pools = conf.get("linepool_pools")
    if pools is None:
        if "command" not in shared:
            raise SettingError(
                "linepool_command",
                "is not set; name the program that serves the tasks, "
                'such as ["ruby", "worker.rb"]',
            )
        shared.setdefault("tasks", ["*"])
        return {"default": _pool("default", {}, shared, concurrency)}
    if "command" in shared:
        raise SettingError("linepool_command", "cannot be set beside linepool_pools")
    if not isinstance(pools, Mapping) or not pools:
        raise SettingError("linepool_pools", "must be a dictionary of pools by name")
    return {
        str(name): _pool(str(name), options, shared, concurrency)
        for name, options in pools.items()
    }


def _pool(
    name: str, own: Any, shared: Mapping[str, Any], concurrency: int
) -> PoolSettings:
    where = f"linepool_pools[{name!r}]"
    if not isinstance(own, Mapping):
        raise SettingError(where, f"must be a dictionary of options, not {own!r}")
    for option in own:
        if option not in CHECKS:
            raise SettingError(f"{where}[{option!r}]", _unknown(str(option), CHECKS))
    follows = "size" not in {**shared, **own}
    values: Dict[str, Any] = {"size": concurrency, "follows": follows}
    for option, value in {**shared, **own}.items():
        setting = f"{where}[{option!r}]" if option in own else PREFIX + option
        try:
            values[option] = CHECKS[option](value)
        except ValueError as exc:
            raise SettingError(setting, str(exc)) from None
    if "command" not in values:
        raise SettingError(where, "has no command")
    if not values.get("tasks") and not values.get("queues"):
        # What it serves is known when a child has said hello, and not before.
        handshake = values.setdefault("handshake", Handshake.REQUIRED)
        if handshake is not Handshake.REQUIRED:
            raise SettingError(
                where,
                "serves nothing; give it tasks or queues, or handshake = 'required' "
                "and children that say what they serve",
            )
    return PoolSettings(name=name, **values)


def metrics_address(conf: Any) -> Optional[Tuple[str, int]]:
    """Where Prometheus is answered, as host and port; None for nowhere.

    Raises:
        SettingError: the setting is no address.
    """
    value = conf.get("linepool_metrics")
    if value is None:
        return None
    host, colon, port = str(value).rpartition(":")
    if not colon or not port.isdigit() or int(port) > 65535:
        raise SettingError(
            "linepool_metrics", f"must be a host and a port, not {value!r}"
        )
    return host.strip("[]") or "0.0.0.0", int(port)


def one_core(conf: Any) -> Union[bool, int]:
    """The core of the worker's own process: a number, or True for any; False for all.

    Raises:
        SettingError: there is no such core, or none can be chosen on this system.
    """
    value = conf.get("linepool_one_core")
    if value is None or value is False:
        return False
    if not cores.SUPPORTED:
        raise SettingError("linepool_one_core", "this system binds no thread to a core")
    allowed = os.sched_getaffinity(0)
    if value is not True and (not isinstance(value, int) or value not in allowed):
        listed = ", ".join(map(str, sorted(allowed)))
        raise SettingError(
            "linepool_one_core",
            f"must be True, False or one of the cores {listed}, not {value!r}",
        )
    return value


def buffered_broker(conf: Any) -> bool:
    """Whether the broker's connection is read and written in large pieces.

    Raises:
        SettingError: the setting is neither True nor False.
    """
    value = conf.get("linepool_buffered_broker", False)
    if not isinstance(value, bool):
        raise SettingError(
            "linepool_buffered_broker", f"must be True or False, not {value!r}"
        )
    return value


def _refuse_unknown(conf: Any) -> None:
    known = {PREFIX + option for option in CHECKS} | OF_THE_WORKER
    for key in _keys(conf):
        if key not in known:
            raise SettingError(key, _unknown(key, known))


def _keys(conf: Any) -> List[str]:
    """Our settings as written, in lower case and without a Django namespace."""
    found = []
    for key in conf.keys():
        _, prefix, option = str(key).lower().partition(PREFIX)
        if prefix and _ in ("", "celery_"):
            found.append(prefix + option)
    return sorted(set(found))


def _unknown(option: str, known: Any) -> str:
    close = difflib.get_close_matches(option, known, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"is no setting of celery-linepool{hint}"

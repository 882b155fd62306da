"""The checks of the settings' values, one for each option of a pool.

Each takes a value and returns it in its final form, or raises ValueError.
"""

from __future__ import annotations

import grp
import os
import pwd
import resource
import signal
from typing import Any, Callable, Mapping, Tuple, Union

from .protocol import Handshake, Stray


def _strings(value: Any) -> Tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, (list, tuple)):
        raise ValueError(f"must be a list of strings, not {value!r}")
    if not all(isinstance(item, str) and item for item in value):
        raise ValueError(f"must hold non-empty strings only: {value!r}")
    return tuple(value)


def _command(value: Any) -> Tuple[str, ...]:
    if isinstance(value, str):
        raise ValueError(f"must be a list, no shell looks at it: {value.split()!r}")
    command = _strings(value)
    if not command:
        raise ValueError("is empty; name the program and its arguments")
    if any("\0" in part for part in command):
        raise ValueError("holds a NUL character")
    return command


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"must be a whole number of 1 or more, not {value!r}")
    return value


def _seconds(value: Any) -> float:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 < value < float("inf"):
        raise ValueError(f"must be a number of seconds above 0, not {value!r}")
    return float(value)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"must be True or False, not {value!r}")
    return value


def _path(value: Any) -> str:
    if not isinstance(value, (str, os.PathLike)):
        raise ValueError(f"must be a path, not {value!r}")
    path = os.fspath(value)
    if "\0" in str(path):
        raise ValueError("holds a NUL character")
    return os.path.abspath(path)


def _env(value: Any) -> Mapping[str, str]:
    if not isinstance(value, Mapping):
        raise ValueError(f"must be a dictionary, not {value!r}")
    for key, item in value.items():
        if not isinstance(key, str) or not isinstance(item, str):
            raise ValueError(f"must map strings to strings; {key!r} does not")
        if not key or "=" in key or "\0" in key + item:
            raise ValueError(f"cannot have a variable {key!r} with that name or value")
    return dict(value)


def _user(value: Any) -> Union[str, int]:
    return _account(value, pwd.getpwnam)


def _group(value: Any) -> Union[str, int]:
    return _account(value, grp.getgrnam)


def _account(value: Any, find: Callable[[str], Any]) -> Union[str, int]:
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise ValueError(f"must be a name or a number, not {value!r}")
    if isinstance(value, int) and value < 0:
        raise ValueError(f"must be a number of 0 or more, not {value!r}")
    if isinstance(value, str):
        try:
            find(value)
        except (KeyError, ValueError):
            raise ValueError(f"names {value!r}, which does not exist here") from None
    return value


def _mask(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 0o777:
        raise ValueError(f"must be a number from 0 to 0o777, not {value!r}")
    return value


def _one_of(*words: str) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if value not in words:
            listed = ", ".join(map(repr, words[:-1]))
            raise ValueError(f"must be {listed} or {words[-1]!r}, not {value!r}")
        return str(value)

    return check


def _handshake(value: Any) -> Handshake:
    return Handshake(_one_of(*(h.value for h in Handshake))(value))


def _stray(value: Any) -> Stray:
    return Stray(_one_of(*(s.value for s in Stray))(value))


def _signal(value: Any) -> int:
    name = str(value).upper()
    try:
        number = signal.Signals[name if name.startswith("SIG") else f"SIG{name}"]
    except KeyError:
        raise ValueError(f"must be the name of a signal, not {value!r}") from None
    return int(number)


def _nice(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not -20 <= value <= 19:
        raise ValueError(f"must be a number from -20 to 19, not {value!r}")
    return value


def _rlimits(value: Any) -> Mapping[int, Tuple[int, int]]:
    if not isinstance(value, Mapping):
        raise ValueError(f"must be a dictionary, not {value!r}")
    limits = {}
    for name, limit in value.items():
        number = getattr(resource, f"RLIMIT_{str(name).upper()}", None)
        if number is None:
            raise ValueError(f"has no resource {name!r}; nofile is one")
        pair = tuple(limit) if isinstance(limit, (list, tuple)) else (limit, limit)
        if len(pair) != 2 or not all(isinstance(n, int) for n in pair):
            raise ValueError(f"must be a number, or a soft and a hard one: {limit!r}")
        limits[number] = (pair[0], pair[1])
    return limits


CHECKS: Mapping[str, Callable[[Any], Any]] = {
    "command": _command,
    "tasks": _strings,
    "queues": _strings,
    "size": _count,
    "cwd": _path,
    "env": _env,
    "inherit_env": _flag,
    "user": _user,
    "group": _group,
    "umask": _mask,
    "timeout": _seconds,
    "stop_timeout": _seconds,
    "max_line": _count,
    "inflight": _count,
    "handshake": _handshake,
    "boot_timeout": _seconds,
    "cancel_grace": _seconds,
    "stdout": _stray,
    "channel": _one_of("stdio", "fd"),
    "stderr": _one_of("log", "inherit"),
    "max_lifetime": _seconds,
    "idle_timeout": _seconds,
    "memory_limit": _count,
    "max_crashes": _count,
    "on_poison": _one_of("fail", "reject"),
    "soft_signal": _signal,
    "dump_signal": _signal,
    "max_boots": _count,
    "wait_for_boot": _flag,
    "nice": _nice,
    "rlimits": _rlimits,
    "reset_file": _path,
    "watch": _strings,
}

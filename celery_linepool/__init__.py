"""Run Celery tasks in warm child processes of any language.

    celery -A app worker -P celery_linepool:LinePool

This module stays light: every ``celery`` command imports it (see ``cli.py``), so the
pool itself is imported when it is first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .errors import ForeignError, LinePoolError
    from .pool import LinePool
    from .tasks import ForeignTask

__all__ = ("ForeignError", "ForeignTask", "LinePool", "LinePoolError", "__version__")

_HOME = {
    "ForeignError": "errors",
    "ForeignTask": "tasks",
    "LinePool": "pool",
    "LinePoolError": "errors",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)

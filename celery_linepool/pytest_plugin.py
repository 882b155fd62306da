"""For tests of applications: ``pytest_plugins = ["celery_linepool.pytest_plugin"]``."""

from __future__ import annotations

# With it "linepool" is a pool's name, also where no command line is.
from . import cli  # noqa: F401
from .kit.fixture import StartedChild, linepool_child

__all__ = ("StartedChild", "linepool_child")

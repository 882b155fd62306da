"""Lets Celery's command line name a pool by ``package:Class``, and ``-P linepool``.

Celery imports this before it parses any option, in every ``celery`` command (entry
point ``celery.commands``). So it imports nothing but what is there already.
"""

from __future__ import annotations

from typing import Any, List, Optional, cast

import click
from celery.bin.control import control as control_command
from celery.bin.control import inspect as inspect_command
from celery.bin.worker import WorkersPool
from celery.concurrency import ALIASES
from celery.concurrency.base import BasePool
from kombu.utils.imports import symbol_by_name

# For "celery control", which knows only the commands that are imported.
from . import control

ALIAS = "linepool"
POOL = "celery_linepool:LinePool"


def _widen() -> None:
    """Make ``-P`` take ``package:Class``: a fixed choice of names on every Celery 5."""
    stock = WorkersPool.convert
    if getattr(stock, "by_linepool", False):
        return

    def convert(
        self: Any,
        value: Any,
        param: Optional[click.Parameter],
        ctx: Optional[click.Context],
    ) -> Any:
        name = POOL if value == ALIAS else value
        if not isinstance(name, str) or ":" not in name:
            return stock(self, value, param, ctx)
        try:
            pool = symbol_by_name(name)  # type: ignore[no-untyped-call]
        except Exception as exc:
            self.fail(f"cannot import the pool {name!r}: {exc}", param, ctx)
        if not isinstance(pool, type) or not issubclass(pool, BasePool):
            self.fail(f"{name!r} is no Celery pool", param, ctx)
        return pool

    convert.by_linepool = True  # type: ignore[attr-defined]
    WorkersPool.convert = convert


def _add_control_commands() -> None:
    """Celery 5.3 has a fixed choice of names here too, made before it imports us."""
    for command, more in (
        (control_command, control.COMMANDS),
        (inspect_command, control.INSPECTIONS),
    ):
        action = command.params[0]
        if isinstance(action.type, click.Choice):
            names = [function.__name__ for function in more]
            action.type = click.Choice([*action.type.choices, *names])


ALIASES[ALIAS] = POOL
_widen()
_add_control_commands()


class Tools(click.Group):
    """Commands that are imported when they are used: this file always is."""

    modules = {
        **{
            name: f"celery_linepool.kit.{name}:{name}"
            for name in ("bench", "check", "init", "run")
        },
        **{
            name: f"celery_linepool.steer:{name}"
            for name in ("dump", "pause", "reset", "resume", "scale", "stats", "top")
        },
    }

    def list_commands(self, ctx: click.Context) -> List[str]:
        return sorted(self.modules)

    def get_command(self, ctx: click.Context, name: str) -> Optional[click.Command]:
        if name not in self.modules:
            return None
        return cast(
            click.Command,
            symbol_by_name(self.modules[name]),  # type: ignore[no-untyped-call]
        )


@click.group(cls=Tools)
def linepool() -> None:
    """Tools for pools of foreign children, and for who writes a child."""

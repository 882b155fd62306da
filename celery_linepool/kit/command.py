"""What the command lines of the kit have in common."""

from __future__ import annotations

import contextlib
import shlex
from typing import Any, Callable, Dict, Iterator, List, Sequence, Tuple, TypeVar

import click

from .child import NotStarted
from .company import Company, Mute, Options
from .signals import Signals

F = TypeVar("F", bound=Callable[..., Any])


class ForCommand(click.Command):
    """A command line that ends in ``-- COMMAND...``; Click itself drops the dashes."""

    def parse_args(self, ctx: click.Context, args: List[str]) -> List[str]:
        at = args.index("--") if "--" in args else len(args)
        rest = super().parse_args(ctx, args[:at])
        ctx.params["command"] = tuple(args[at + 1 :])
        return rest

    def collect_usage_pieces(self, ctx: click.Context) -> List[str]:
        return [*super().collect_usage_pieces(ctx), "--", "COMMAND..."]


class CannotStart(click.ClickException):
    """There is no child to speak with."""

    exit_code = 2

    def __init__(self, why: Exception) -> None:
        super().__init__(f"the child cannot be started: {why}")


def pairs(
    ctx: click.Context, param: click.Parameter, value: Sequence[str]
) -> Dict[str, str]:
    """``--env NAME=VALUE``, any number of them."""
    for text in value:
        if not text.partition("=")[0] or "=" not in text:
            raise click.BadParameter(f"{text!r} is not NAME=VALUE", ctx, param)
    return {name: text for name, _, text in (pair.partition("=") for pair in value)}


def for_child(function: F) -> F:
    """The options that say how the child is started."""
    for option in (
        click.option(
            "--env",
            multiple=True,
            callback=pairs,
            metavar="NAME=VALUE",
            help="A variable of its environment, besides yours.",
        ),
        click.option(
            "--cwd", type=click.Path(exists=True, file_okay=False), help="Its folder."
        ),
    ):
        function = option(function)
    return function


boot_timeout = click.option(
    "--boot-timeout",
    default=60.0,
    show_default=True,
    type=click.FloatRange(min=0, min_open=True),
    help="Seconds until its first line.",
)


def options_of(command: Tuple[str, ...], **options: Any) -> Options:
    """The options of a child; a usage error if there is none."""
    if not command:
        raise click.UsageError('say the command of the child after "--"')
    return Options(command=command, **options)


@contextlib.contextmanager
def company_of(options: Options) -> Iterator[Company]:
    """Children that do not outlive the command, however it ends."""
    signals = Signals()
    with signals.handled():
        company = Company(options, signals.held)
        try:
            yield company
        except (NotStarted, Mute) as exc:
            raise CannotStart(exc) from None
        finally:
            company.close()


def shown(command: Sequence[str]) -> str:
    """A command as a shell would take it."""
    return " ".join(map(shlex.quote, command))

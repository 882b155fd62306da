"""``celery linepool run``: one task in one child, without any broker."""

from __future__ import annotations

import json
import math
import sys
import uuid
from typing import Any, Dict, List, Optional, Tuple

import click

from .command import ForCommand, company_of, for_child, options_of
from .company import Company
from .said import Odd, Said
from .scenario import Failure
from .talk import Talk

#: By status; 2 is that of whatever goes wrong besides.
EXIT_CODES = {"ok": 0, "error": 1}
OTHER_STATUS = 3


class NoReply(click.ClickException):
    exit_code = 2


class Stranger(ForCommand):
    """Takes arguments that look like options: -5 is a number."""

    def parse_args(self, ctx: click.Context, args: List[str]) -> List[str]:
        rest = super().parse_args(ctx, args)
        for text in ctx.params.get("args", ()):
            if text.startswith("--"):
                raise click.NoSuchOption(text, ctx=ctx)
        return rest


def as_object(ctx: click.Context, param: click.Parameter, value: str) -> Dict[str, Any]:
    try:
        parsed = json.loads(value)
    except ValueError as exc:
        raise click.BadParameter(f"no JSON ({exc})", ctx, param) from None
    if not isinstance(parsed, dict):
        raise click.BadParameter("no JSON object", ctx, param)
    return parsed


@click.command(cls=Stranger, context_settings={"ignore_unknown_options": True})
@click.argument("task")
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
@click.option(
    "--kwargs",
    default="{}",
    callback=as_object,
    metavar="JSON",
    help="Keyword arguments, as a JSON object.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    help="Seconds until the reply; as long as it takes by default.",
)
@for_child
def run(
    task: str,
    args: Tuple[str, ...],
    kwargs: Dict[str, Any],
    timeout: Optional[float],
    command: Tuple[str, ...],
    **options: Any,
) -> None:
    """Run TASK once in a child, and print its result as JSON.

    ARGS are JSON where they can be read as such, and text otherwise. Events and the
    child's stderr go to stderr. A task that is published is not sent: it gets an id,
    and is shown.

    Exit code: 0 if it succeeded; 1 if it failed; 3 if it ended in another way; 2 if
    there was no reply.
    """
    # A child of the original protocol says nothing before its reply.
    wait = math.inf if timeout is None else timeout
    waits = {"timeout": wait, "boot_timeout": wait}
    try:
        with company_of(options_of(command, **waits, **options)) as company:
            values = [_value(text) for text in args]
            reply = _serve(company, task, values, kwargs)
    except Failure as failure:
        raise NoReply(f"expected {failure.expected}") from None
    _tell(reply)
    sys.exit(EXIT_CODES.get(reply.status, OTHER_STATUS))


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _serve(
    company: Company, task: str, args: List[Any], kwargs: Dict[str, Any]
) -> Said:
    talk = company.start()
    talk.child.on_stderr = _pass_on
    id = talk.request(task, *args, kwargs=kwargs)
    while True:
        said = talk.next()
        _noise(company)
        if said.id == id and not said.op:
            return said
        if said.op == "publish":
            _publish(talk, said)
        elif said.op in ("progress", "log"):
            _event(said)


def _pass_on(data: bytes) -> None:
    sys.stderr.buffer.write(data)
    sys.stderr.buffer.flush()


def _noise(company: Company) -> None:
    for odd in company.oddities:
        click.echo(f"{odd.kind.value}: {_text(odd)}", err=True)
    company.oddities.clear()


def _text(odd: Odd) -> str:
    return odd.line.decode(errors="backslashreplace")


def _event(said: Said) -> None:
    fields = said.fields
    if said.op == "progress":
        click.echo(f"progress: {json.dumps(fields.get('meta'))}", err=True)
    else:
        click.echo(f"{fields.get('level')}: {fields.get('message')}", err=True)


def _publish(talk: Talk, said: Said) -> None:
    id = str(uuid.uuid4())
    fields = said.fields
    args, kwargs = fields.get("args", []), fields.get("kwargs", {})
    click.echo(
        f"publish ({fields.get('when', 'now')}): {fields.get('task')} "
        f"{json.dumps(args)} {json.dumps(kwargs)} as {id}",
        err=True,
    )
    talk.op("answer", id=said.id, seq=fields.get("seq"), task_id=id)


def _tell(reply: Said) -> None:
    if reply.status == "ok":
        return click.echo(json.dumps(reply.result, ensure_ascii=False))
    fields = {name: reply.fields[name] for name in reply.fields if name != "id"}
    backtrace = fields.pop("backtrace", None) or []
    if reply.status == "error":
        kind = fields.get("type")
        head = f"{kind}: " if kind else ""
        click.echo(f"{head}{fields.get('message') or 'no message'}", err=True)
    else:
        click.echo(json.dumps(fields, ensure_ascii=False), err=True)
    for line in backtrace:
        click.echo(f"    {line}", err=True)

"""Several requests at once, and very many one after the other."""

from __future__ import annotations

from collections import deque
from typing import Deque, List

from ..company import CHECK, ECHO
from ..play import Play
from ..processes import memory
from ..scenario import SHOULD, Failure, Rows, Untried
from ..talk import Talk

rows = Rows()
#: Requests at once that are tried, however many a child says that it takes.
MOST = 64
TASKS = 10_000
#: Of so many stretches only the first may be needed to grow to its usual size.
STRETCHES = 5
#: Bytes for each task by which a child that keeps something grows.
GROWTH = 512


@rows.add("inflight-order", SHOULD, "9", "inflight", tasks=("sleep",), inflight=2)
def inflight_order(play: Play) -> None:
    """Several requests at once are of use only if a slow one does not hold up the
    others."""
    talk = play.shared()
    slow, fast = talk.request(CHECK + "sleep", 1), talk.request(CHECK + "sleep", 0)
    first = talk.first_reply()
    if first.id != fast:
        raise Failure("the reply to the second request first: it takes 0 s", first.line)
    talk.reply(slow).expect("ok")


@rows.add("inflight-full", SHOULD, "9", "inflight", tasks=("publish",), inflight=2)
def inflight_full(play: Play) -> None:
    """What a hello names as inflight is what the worker sends. Here each task waits for
    an answer, and all of them at the same time."""
    talk = play.shared()
    most = min(play.hello.inflight, MOST)
    ids = [talk.request(CHECK + "publish", ECHO, "now") for _ in range(most)]
    for event in reversed([talk.event("publish", id) for id in ids]):
        seq = event.fields.get("seq")
        talk.op("answer", id=event.id, seq=seq, task_id=f"for {event.id}")
    for id in ids:
        play.same(f"for {id}", talk.reply(id).expect("ok"))


@rows.add("inflight-64", SHOULD, "9", "inflight", inflight=MOST)
def inflight_64(play: Play) -> None:
    """Each of many requests in one write is replied to, once."""
    talk = play.shared()
    lines = dict(talk.line(play.task) for _ in range(MOST))
    talk.write(b"".join(lines.values()))
    for id in lines:
        talk.reply(id)
    play.ask(talk)


@rows.add("inflight-refilled", SHOULD, "9", "inflight", inflight=2)
def inflight_refilled(play: Play) -> None:
    """A slot is free again with its reply, and at once taken by the next request."""
    _work(play.shared(), play.task, 500, min(play.hello.inflight, MOST))


@rows.add("memory", SHOULD, "8", "memory", original=True)
def memory_(play: Play) -> None:
    """A child lives for weeks. One that keeps a little of each task does not."""
    talk = play.shared()
    most = 1 if play.is_original else min(play.hello.inflight, 16)
    sizes: List[int] = []
    for _ in range(STRETCHES):
        _work(talk, play.task, TASKS // STRETCHES, most)
        size = memory(talk.child.pid)
        if not size:
            raise Untried("the size of the process cannot be read here")
        sizes.append(size)
    growth = [after - before for before, after in zip(sizes, sizes[1:])]
    # Who collects garbage grows for a while; who leaks grows for ever.
    if min(growth) > GROWTH * TASKS // STRETCHES:
        told = ", ".join(f"{size / 1e6:.1f}" for size in sizes)
        raise Failure(f"a size that settles over {TASKS} tasks, not MB {told}", b"")
    play.notes.append(f"{sizes[-1] / 1e6:.0f} MB after {TASKS} tasks")


def _work(talk: Talk, task: str, count: int, most: int) -> None:
    asked: Deque[str] = deque()
    for _ in range(count):
        if len(asked) == most:
            talk.reply(asked.popleft())
        asked.append(talk.request(task))
    while asked:
        talk.reply(asked.popleft())

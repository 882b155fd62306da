"""Messages from Redis, many at once, and none that only a worker knows of.

By itself kombu takes one message at a time, and then tells Redis that it has it: a
worker that is killed in between has lost it. Here a script in Redis does both in one
step, for as many messages as the worker may prefetch. kombu's notes of what is
unacknowledged stay as they are, and so does all that is made of them: the visibility
timeout, rejections, what goes back at the end of a worker.

In place of waiting in Redis for a message, which takes it, a bell tells the worker.
All of it belongs to the main thread.
"""

from __future__ import annotations

import enum
import random
import time
import uuid
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty
from typing import Any, Deque, Dict, FrozenSet, List, Optional, Tuple

from celery.utils.log import get_logger
from kombu.transport import virtual
from kombu.utils.json import dumps, loads
from kombu.utils.scheduling import priority_cycle, round_robin_cycle

from . import compat
from .bell import Bell, hear
from .consumer import MISREAD

logger = get_logger(__name__)

SCRIPT = Path(__file__).with_name("fetch.lua").read_text()
#: Messages of one step at the most: the worker does nothing else while it reads them.
MOST = 64
#: Bytes after which a step takes no further message.
ENOUGH = 1 << 20
#: Seconds between looks without a bell; as long as kombu waits in Redis.
LOOK = 1.0
#: Seconds that a worker waits at the most before it looks again, when another one was
#: faster the last time: a message rings for all that are idle.
APART = 0.01
#: What of kombu's notes of a connection is not in Redis.
_VirtualQoS: Any = virtual.QoS

#: Its delivery tag, its queue, and the message as kombu reads it.
Message = Tuple[str, str, Dict[str, Any]]


class Why(enum.Enum):
    """Why Redis is to be asked."""

    #: It has more than it could give the last time, or that is not known.
    MORE = "more"
    BELL = "bell"
    #: It is long since it was asked.
    TIME = "time"


@dataclass(frozen=True)
class Step:
    """What was asked of Redis: messages whose tags are `tag` and a number from 1 on."""

    why: Why
    tag: str
    most: int
    queues: Tuple[str, ...]
    #: Those of them that want no acks, and so have no notes.
    unnoted: FrozenSet[str]


@dataclass
class Owed:
    """What a connection that was lost has left undone; the next one does it."""

    acks: List[str] = field(default_factory=list)
    #: Their answers were not read: what they took has to go back.
    unread: List[Step] = field(default_factory=list)


class Fetching:
    """Stands in for kombu's reading of one connection to Redis.

    Arguments:
        consumer: kombu's, of the tasks.
        hub: the worker's event loop.
        one_by_one: someone decides before each message whether it may be taken.
        owed: by the connection before.
    """

    def __init__(self, consumer: Any, hub: Any, one_by_one: bool, owed: Owed) -> None:
        channel = consumer.channel
        self.errors = channel.connection_errors
        self.owed = owed
        self._consumer = consumer
        self._channel = channel
        self._qos = channel.qos
        self._hub = hub
        turns = type(channel._queue_cycle).rotate
        # Ways to order queues that nobody here knows ask before each message as well.
        known = turns in (round_robin_cycle.rotate, priority_cycle.rotate)
        self._one_by_one = one_by_one or not known
        #: Queues take turns, or the first one is emptied before the next.
        self._in_turn = turns is round_robin_cycle.rotate
        self._bell: Optional[Bell] = None
        self._tracked: Any = None
        #: The one whose answer is awaited.
        self._step: Optional[Step] = None
        #: Redis has done it once: what it refuses from now on, it may grant again.
        self._works = False
        #: None if there is no need.
        self._wanted: Optional[Why] = Why.MORE
        #: The bell rang, and there was nothing.
        self._late = False
        #: Acks are kept until `flush`.
        self._gathers = False
        #: What the tags of noted messages begin with, while they are delivered.
        self._noted = "nothing yet"
        channel._brpop_start = self._start
        channel._brpop_read = channel.handlers["BRPOP"] = self._read
        self._qos.append = self._append
        self._qos.ack = self._ack
        self._timer = self._hub.call_repeatedly(LOOK, self._look)
        # Called after acks and timers, before the event loop waits.
        hub.on_tick.add(self.flush)

    def close(self) -> None:
        """Begin nothing more. kombu ends what is begun when it closes the channel."""
        self._timer.cancel()
        self._hub.on_tick.discard(self.flush)
        if self._bell is not None:
            self._bell.close()

    # --- when to fetch ----------------------------------------------------------------

    def _look(self) -> None:
        """Called now and then, lest a bell that is silent holds up a message."""
        self._wanted = self._wanted or Why.TIME

    def _rung(self) -> None:
        if self._late:
            self._late = False
            self._hub.call_later(random.uniform(0, APART), self._heed)
        else:
            self._heed()

    def _heed(self) -> None:
        if self._wanted is not Why.MORE:
            self._wanted = Why.BELL

    # --- fetching ---------------------------------------------------------------------

    def _start(self, timeout: Any = None) -> None:
        """Called by kombu when it may consume and waits for no answer."""
        if self._wanted is None:
            return
        channel = self._channel
        try:
            self._settle()
            self._listen()
        except channel.ResponseError as exc:
            self._give_up(exc)
            channel._brpop_start(timeout)
            return
        queues = channel._queue_cycle.consume(len(channel.active_queues))
        if queues:
            # Whoever rings from now on, before the answer or after it, is heeded.
            why, self._wanted = self._wanted, None
            self._ask(why, channel.client.connection, tuple(queues))

    def _listen(self) -> None:
        connection = self._channel.client.connection
        if self._bell is None or self._bell.closed:
            self._bell = Bell(self._channel.pool, self._hub, self._rung)
            self._tracked = None
        if self._tracked is not connection._sock:
            self._bell.ring_for(connection)
            # kombu connects again by itself when Redis is silent for long.
            self._tracked = connection._sock

    def _ask(self, why: Why, connection: Any, queues: Tuple[str, ...]) -> None:
        channel = self._channel
        room = 1 if self._one_by_one else self._qos.can_consume_max_estimate()
        most = MOST if room is None else max(1, min(room, MOST))
        unnoted = frozenset(q.name for q in self._consumer.queues if q.no_ack)
        self._step = Step(why, f"{uuid.uuid4()}:", most, queues, unnoted)
        lists = [
            channel._q_for_pri(queue, priority)
            for priority in channel.priority_steps
            for queue in queues
        ]
        keys = [self._qos.unacked_key, self._qos.unacked_index_key, *lists]
        prefix = channel.global_keyprefix or ""
        channel._in_poll = connection
        # Since kombu 5.7: an answer that does not come is noticed.
        channel._brpop_sent_at = time.monotonic()
        connection.send_command(
            *("EVAL", SCRIPT, len(keys), *(prefix + key for key in keys)),
            *(most, 1 if self._in_turn else most, self._step.tag, time.time()),
            *(ENOUGH, len(queues)),
            *("" if queue in unnoted else _behind(queue) for queue in queues),
        )

    def _read(self, **options: Any) -> bool:
        """Called by kombu when Redis has answered. True if there was a message.

        Raises:
            queue.Empty: there was none.
        """
        channel = self._channel
        step, self._step = self._step, None
        connection = channel.client.connection
        try:
            if step is None:
                hear(connection)
                raise Empty
            answer = channel.client.parse_response(connection, "EVAL", **options)
        except channel.ResponseError as exc:
            self._refused(exc)
            raise Empty from None
        except channel.connection_errors:
            if step is not None:
                self.owed.unread.append(step)
            connection.disconnect()
            raise
        finally:
            channel._in_poll = None
            compat.has_read(channel)
        self._works = True
        return self._took(step, answer)

    def _took(self, step: Step, answer: List[Any]) -> bool:
        drained, found = answer[0], answer[1:]
        if not drained:
            self._wanted = Why.MORE
        self._late = step.why is Why.BELL and not found
        if step.why is Why.TIME and found and self._bell is not None:
            self._bell.close()  # it should have rung
            self._wanted = Why.MORE  # with another one
        self._noted = step.tag
        rest: Deque[Message] = deque()
        for number in range(len(found) // 2):
            queue = step.queues[found[2 * number] - 1]
            # Without a note a message keeps the tag of its own.
            tag = None if queue in step.unnoted else f"{step.tag}{number + 1}"
            opened = self._opened(tag, queue, found[2 * number + 1])
            if opened is not None:
                rest.append(opened)
        self._give_back(rest, step.unnoted)
        try:
            while rest:
                _, queue, content = rest.popleft()
                self._channel._queue_cycle.rotate(queue)
                self._channel.connection._deliver(content, queue)
        finally:
            # Something was raised: they go back with whatever ends the connection.
            for tag, _, content in rest:
                message = self._channel.Message(content, channel=self._channel)
                self._append(message, tag)
        if not found:
            raise Empty
        return True

    def _give_back(self, messages: Deque[Message], unnoted: FrozenSet[str]) -> None:
        """Let others have what is consumed here no more, since a moment ago."""
        consumed = {*self._channel.active_queues, *unnoted}
        for message in reversed(list(messages)):
            tag, queue, _ = message
            if queue not in consumed:
                self._qos.restore_by_tag(tag)
                messages.remove(message)

    def _opened(self, tag: Optional[str], queue: str, data: bytes) -> Optional[Message]:
        """A message as kombu knows it; None if it is none, which is then gone."""
        try:
            message = loads(data)  # type: ignore[no-untyped-call]
            properties = message["properties"]
            properties["delivery_tag"] = tag or properties["delivery_tag"]
            self._channel.Message(message, channel=self._channel)
        except MISREAD as exc:
            logger.error(
                "linepool: what was in queue %r is no message, and is dropped: %.200r "
                "(%r); find out who else writes to that key of Redis",
                *(queue, data, exc),
            )
            if tag is not None:
                self._ack(tag)
            return None
        return properties["delivery_tag"], queue, message

    def _append(self, message: Any, tag: str) -> None:
        if tag.startswith(self._noted):
            _VirtualQoS.append(self._qos, message, tag)
        else:
            type(self._qos).append(self._qos, message, tag)

    # --- acks -------------------------------------------------------------------------

    def gather(self) -> None:
        """Keep acks until the event loop waits, or `flush` is called."""
        self._gathers = True

    def flush(self) -> None:
        """Send the acks that were kept, in one step.

        Raises:
            one of `errors`: the connection is lost. The next one sends them.
        """
        self._gathers = False
        self._send_acks()

    def _ack(self, tag: str) -> None:
        self.owed.acks.append(tag)
        _VirtualQoS.ack(self._qos, tag)
        if not self._gathers:
            self._send_acks()

    def _send_acks(self) -> None:
        tags = self.owed.acks
        if not tags:
            return
        with self._qos.pipe_or_acquire() as pipe:
            pipe.zrem(self._qos.unacked_index_key, *tags)
            pipe.hdel(self._qos.unacked_key, *tags)
            pipe.execute()
        tags.clear()

    def _settle(self) -> None:
        """Do what the connection before this one has left undone."""
        self._send_acks()
        while self.owed.unread:
            step = self.owed.unread[-1]
            # The first one last: it is the next to be taken again.
            for number in range(step.most, 0, -1):
                self._qos.restore_by_tag(f"{step.tag}{number}")
            self.owed.unread.pop()

    # --- where Redis refuses ----------------------------------------------------------

    def _refused(self, exc: Exception) -> None:
        if not self._works:
            self._give_up(exc)
            return
        logger.error(
            "linepool: Redis hands out no message: %s; trying again every %g s",
            *(exc, LOOK),
        )

    def _give_up(self, exc: Exception) -> None:
        logger.warning(
            "linepool: linepool_buffered_broker has no effect: Redis refuses what it "
            "needs (version 6, scripts, client tracking): %s",
            exc,
        )
        self.close()
        del self._channel._brpop_start, self._channel._brpop_read
        self._channel.handlers["BRPOP"] = self._channel._brpop_read
        del self._qos.append, self._qos.ack


def _behind(queue: str) -> str:
    """What kombu notes behind a message: the exchange and the routing key.

    With these it goes back to the queue in which it was; the exchange by which it came
    may have others as well.
    """
    name = dumps(queue)  # type: ignore[no-untyped-call]
    return f',"",{name}]'


def fetching(
    consumer: Any, hub: Any, one_by_one: bool, before: Any
) -> Optional[Fetching]:
    """Fetch for this consumer; None where that is not possible.

    It is possible with Redis itself (no Sentinel, no cluster), where kombu emulates
    acks, and with an event loop.

    Arguments:
        consumer: kombu's, of the tasks.
        hub: the worker's event loop, if there is one.
        one_by_one: someone decides before each message whether it may be taken.
        before: what this function returned for the connection before, if anything.
    """
    channel = consumer.channel
    if hub is None or channel.connection.driver_type != "redis":
        return None
    from kombu.transport import redis

    if type(channel) is not redis.Channel or type(channel.qos) is not redis.QoS:
        return None
    owed = before.owed if isinstance(before, Fetching) else Owed()
    return Fetching(consumer, hub, one_by_one, owed)

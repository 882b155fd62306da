"""Acks of several messages in one: RabbitMQ gives back all others, and only those."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kombu import Connection, Consumer, Queue
from localprocess import Servers

from celery_linepool import acks
from celery_linepool.acks import Acks

MESSAGES = 8


class Link:
    """A consumer with its messages, on a channel whose frames are counted."""

    def __init__(self, url: str, no_ack: bool = False) -> None:
        self.url = url
        self.connection = Connection(url)
        self.channel: Any = self.connection.channel()
        self.queue = Queue(f"q-{uuid.uuid4().hex}", auto_delete=False)
        self.queue(self.channel).declare()
        #: Frames that were sent: the method, and whether more than one is meant.
        self.sent: list[tuple[Any, ...]] = []
        send = self.channel.send_method

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.sent.append(args)
            return send(*args, **kwargs)

        self.channel.send_method = counted
        self.acks = Acks(self.channel)
        self.messages: list[Any] = []
        Consumer(
            self.channel,
            [self.queue],
            on_message=self.messages.append,
            no_ack=no_ack,
            accept=["json"],
        ).consume()

    def take(self, count: int) -> list[Any]:
        wanted = len(self.messages) + count
        producer = self.connection.Producer()
        for number in range(count):
            producer.publish(number, routing_key=self.queue.name)
        while len(self.messages) < wanted:
            self.connection.drain_events(timeout=60)
        self.sent.clear()
        return self.messages[-count:]

    def given_back(self) -> int:
        """How many the broker gives to others once the connection is lost."""
        self.connection.close()
        with Connection(self.url) as other:
            declare = self.queue(other.default_channel).queue_declare
            count = int(declare(passive=True).message_count)
            self.queue(other.default_channel).delete()
        return count


@pytest.fixture(scope="module")
def url(servers: Servers) -> Iterator[str]:
    lease = servers.shared("rabbitmq").lease()
    yield lease.url
    lease.release()


@settings(max_examples=60, deadline=None)
@given(
    order=st.permutations(range(MESSAGES)),
    count=st.integers(0, MESSAGES),
    flushes=st.sets(st.integers(0, MESSAGES)),
    gathers=st.sets(st.integers(0, MESSAGES)),
    rejected=st.sets(st.integers(0, MESSAGES - 1), max_size=2),
    through=st.sets(st.integers(0, MESSAGES - 1), max_size=1),
)
def test_what_was_not_settled_comes_back_and_nothing_else(
    url: str,
    order: list[int],
    count: int,
    flushes: set[int],
    gathers: set[int],
    rejected: set[int],
    through: set[int],
) -> None:
    link = Link(url)
    messages, settled = link.take(MESSAGES), set()
    for turn, number in enumerate(order[:count]):
        if turn in gathers:
            link.acks.gather()
        if turn in flushes:
            link.acks.flush()
        if number in settled:
            continue  # an ack through a later one
        if number in rejected:
            messages[number].reject()
        elif number in through:
            messages[number].ack(multiple=True)
            settled |= set(range(number))
        else:
            messages[number].ack()
        settled.add(number)
    link.acks.flush()
    # A connection that the broker had to end for a wrong tag would say so here.
    link.channel.basic_qos(0, 100, False)
    assert link.given_back() == MESSAGES - len(settled)


def test_those_of_a_turn_are_one(url: str) -> None:
    link = Link(url)
    messages = link.take(20)
    link.acks.gather()
    for message in reversed(messages):
        message.ack()
    assert link.sent == []
    link.acks.flush()
    assert len(link.sent) == 1
    assert link.given_back() == 0


def test_one_that_is_being_worked_on_is_not_among_them(url: str) -> None:
    link = Link(url)
    messages = link.take(20)
    link.acks.gather()
    for message in messages[:7] + messages[8:]:
        message.ack()
    link.acks.flush()
    assert len(link.sent) == 1 + 12  # those before it, and each of those after it
    messages[7].ack()
    more = link.take(10)
    link.acks.gather()
    for message in more:
        message.ack()
    link.acks.flush()
    assert len(link.sent) == 1
    assert link.given_back() == 0


def test_a_rejected_one_does_not_end_it(url: str) -> None:
    link = Link(url)
    first, *rest = link.take(10)
    first.reject()
    link.acks.gather()
    for message in rest:
        message.ack()
    link.acks.flush()
    assert len(link.sent) == 2
    assert link.given_back() == 0


def test_of_a_connection_that_is_lost_nothing_is_kept(url: str) -> None:
    """Whoever acknowledges a message of it hears of that."""
    link = Link(url)
    messages = link.take(2)
    link.acks.gather()
    messages[0].ack()
    link.acks.close()
    assert link.given_back() == 2
    with pytest.raises(link.connection.connection_errors):
        messages[1].ack()


def test_nothing_is_remembered_of_messages_without_end(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of some nobody ever says that they are settled: those that want no ack."""
    monkeypatch.setattr(acks, "MOST", 5)
    link = Link(url)
    messages = link.take(20)
    link.acks.gather()
    messages[0].ack()
    messages[1].ack()
    messages[10].ack()
    assert len(link.sent) == 2  # there it gave up: those before, and this one
    messages[11].ack()
    messages[12].reject()
    assert len(link.sent) == 4
    link.acks.flush()
    assert link.given_back() == 20 - 5

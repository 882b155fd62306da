"""Messages from Redis: many at once, and each noted in the step that takes it."""

from __future__ import annotations

import select
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from kombu import Connection, Consumer, Queue
from kombu.asynchronous import Hub, set_event_loop
from localprocess import Servers
from proxy import Proxy
from workers import FAST, eventually

from celery_linepool.bell import pushes
from celery_linepool.fetching import ENOUGH, MOST, Fetching, fetching

CHILDREN = Path(__file__).parent / "children"
LIVES = ["ruby", str(CHILDREN / "lives.rb")]


class Link:
    """A consumer as a worker has one: on an event loop, with a prefetch count."""

    def __init__(self, url: str, queues: list[Queue], **options: Any) -> None:
        self.one_by_one = options.pop("one_by_one", False)
        self.prefetch = options.pop("prefetch", 0)
        self.url, self.queues, self.options = url, queues, options
        self.hub = Hub()
        set_event_loop(self.hub)
        self.messages: list[Any] = []
        self.turns = 0
        self.on_message: Callable[[Any], Any] = self.messages.append
        self.fetching: Fetching | None = None
        self.connection: Connection | None = None
        self.connect()

    def connect(self) -> None:
        self.connection = Connection(self.url, transport_options=self.options)
        self.channel = self.connection.default_channel
        self.consumer = Consumer(
            self.channel,
            self.queues,
            on_message=lambda message: self.on_message(message),
            accept=["json"],
        )
        self.consumer.qos(prefetch_count=self.prefetch)
        self.fetching = fetching(
            self.consumer, self.hub, self.one_by_one, self.fetching
        )
        assert self.fetching is not None
        self.connection.register_with_event_loop(self.hub)
        self.hub.propagate_errors = self.connection.connection_errors
        self.consumer.consume()
        self.loop = self.hub.create_loop()

    def connect_again(self) -> None:
        """As Celery does when a connection is lost."""
        assert self.connection is not None
        assert self.fetching is not None
        before = self.channel
        self.fetching.close()
        self.hub.reset()
        self.connection.collect()
        if before._pool is not None:
            before._pool.disconnect()
        self.connect()

    def turn(self) -> None:
        self.turns += 1
        try:
            next(self.loop)
        except StopIteration:
            self.loop = self.hub.create_loop()

    def tick(self) -> None:
        """The beginning of a turn: what is to be sent is sent."""
        for tick in list(self.hub.on_tick):
            tick()

    @staticmethod
    def wait_for_bytes(sock: Any) -> None:
        assert select.select([sock], [], [], 60)[0]

    def turn_until(self, done: Callable[[], Any]) -> None:
        def turn() -> bool:
            self.turn()
            return bool(done())

        eventually(turn)

    def settle(self) -> None:
        """Redis has been asked, and whatever was said at the beginning is read."""
        for _ in range(3):
            self.turn()
        fetching = self.fetching
        assert fetching is not None
        self.turn_until(lambda: fetching._works and not self.channel._in_poll)

    def take(self, count: int) -> list[Any]:
        self.turn_until(lambda: len(self.messages) >= count)
        return [message.payload for message in self.messages]

    def lose(self) -> None:
        """The worker is killed: it says nothing more to Redis."""
        assert self.connection is not None and self.fetching is not None
        self.fetching.close()
        for client in ("client", "subclient"):
            if client in vars(self.channel):
                vars(self.channel)[client].connection.disconnect()
        self.channel._in_poll = None
        self.channel.qos._delivered.clear()
        self.channel.qos._dirty.clear()
        self.hub.reset()

    def end(self) -> None:
        """As a worker that was told to stop."""
        self.consumer.cancel()
        self.channel.close()

    def close(self) -> None:
        assert self.connection is not None and self.fetching is not None
        self.fetching.close()
        self.connection.close()
        # kombu gives back what it has after it has closed its connections.
        if self.channel._pool is not None:
            self.channel._pool.disconnect()
        self.hub.close()
        set_event_loop(None)


class Broker:
    """A database of Redis, as producers and whoever looks on see it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.client = redis.Redis.from_url(url)

    def publish(self, queue: str, bodies: list[Any], **options: Any) -> None:
        with Connection(self.url, transport_options=options) as connection:
            for body in bodies:
                priority = body["priority"] if isinstance(body, dict) else 0
                connection.Producer().publish(
                    body, routing_key=queue, priority=priority, serializer="json"
                )

    def unacknowledged(self, prefix: str = "") -> int:
        notes = self.client.hlen(f"{prefix}unacked")
        assert notes == self.client.zcard(f"{prefix}unacked_index")
        return int(notes)

    def restore(self) -> None:
        """As any worker does for those that are gone, when the time has come."""
        with Connection(self.url, transport_options={"visibility_timeout": 0}) as other:
            other.default_channel.qos.restore_visible(num=None, interval=1)


@pytest.fixture
def broker(servers: Servers) -> Iterator[Broker]:
    lease = servers.shared("redis").lease()
    broker = Broker(lease.url)
    yield broker
    broker.client.close()
    lease.release()


@pytest.fixture
def consume(broker: Broker) -> Iterator[Callable[..., Link]]:
    links: list[Link] = []

    def start(*queues: str | Queue, url: str = broker.url, **options: Any) -> Link:
        named = [q if isinstance(q, Queue) else Queue(q) for q in queues or ("q",)]
        links.append(Link(url, named, **options))
        return links[-1]

    yield start
    for link in links:
        link.close()


Consume = Callable[..., Link]


def test_many_messages_come_in_few_turns_and_in_order(
    broker: Broker, consume: Consume
) -> None:
    bodies = [[number, "x" * (number % 100)] for number in range(200)]
    broker.publish("q", bodies)
    link = consume()
    assert link.take(200) == bodies
    # By itself kombu takes one message in two turns or more.
    assert link.turns < 50
    assert broker.unacknowledged() == 200


def test_a_message_that_comes_later_rings(broker: Broker, consume: Consume) -> None:
    link = consume()
    link.settle()
    link.fetching._timer.cancel()  # no look without a bell
    for number in range(5):
        broker.publish("q", [number])
        assert link.take(number + 1)[-1] == number
    assert broker.unacknowledged() == 5


def test_a_bell_that_is_heard_before_an_answer_is_heeded(
    broker: Broker, consume: Consume
) -> None:
    link = consume()
    link.settle()
    fetching = link.fetching
    assert fetching is not None and fetching._bell is not None
    fetching._timer.cancel()
    fetching._look()
    link.tick()
    link.wait_for_bytes(link.channel.client.connection._sock)  # there is nothing
    broker.publish("q", [1])
    link.wait_for_bytes(fetching._bell._sock)
    fetching._bell._read()
    assert link.take(1) == [1]


def test_whoever_takes_one_at_a_time_is_never_too_late(
    broker: Broker, consume: Consume
) -> None:
    link = consume(prefetch=1)
    link.settle()
    for number in range(3):
        broker.publish("q", [number])
        link.take(number + 1)
        link.messages[-1].ack()
        link.settle()
        assert link.fetching is not None and not link.fetching._late


def test_a_killed_worker_has_lost_nothing(broker: Broker, consume: Consume) -> None:
    broker.publish("q", list(range(30)))
    link = consume()
    assert link.fetching is not None
    # Redis has given them; the worker never reads the answer.
    link.tick()
    eventually(lambda: broker.unacknowledged() == 30)
    link.lose()
    assert broker.client.llen("q") == 0
    broker.restore()
    assert broker.unacknowledged() == 0
    assert sorted(consume().take(30)) == list(range(30))


def test_what_was_taken_goes_back_when_the_worker_ends(
    broker: Broker, consume: Consume
) -> None:
    broker.publish("q", list(range(30)))
    link = consume()
    link.take(30)
    for message in link.messages[:10]:
        message.ack()
    assert broker.unacknowledged() == 20
    link.end()
    assert broker.unacknowledged() == 0
    assert broker.client.llen("q") == 20


def test_an_answer_that_nobody_reads_goes_back_when_the_worker_ends(
    broker: Broker, consume: Consume
) -> None:
    broker.publish("q", list(range(30)))
    link = consume()
    link.tick()
    eventually(lambda: broker.unacknowledged() == 30)
    broker.publish("q", [30])
    link.end()
    assert link.messages == [] and broker.unacknowledged() == 0
    # Not behind what came later, as what is rejected.
    assert consume().take(31) == list(range(31))


def test_a_rejected_message_comes_again(broker: Broker, consume: Consume) -> None:
    broker.publish("q", [1, 2])
    link = consume()
    link.take(2)
    link.messages[0].reject(requeue=True)
    link.messages[1].reject()
    link.turn_until(lambda: len(link.messages) == 3)
    assert link.messages[2].payload == 1
    assert link.messages[2].headers["redelivered"] is True
    assert broker.unacknowledged() == 1


def test_no_more_are_taken_than_may_be_prefetched(
    broker: Broker, consume: Consume
) -> None:
    broker.publish("q", list(range(30)))
    link = consume(prefetch=7)
    taken = 0
    for done in range(0, 30, 3):
        link.take(min(done + 7, 30))
        link.turn()
        taken = max(taken, broker.unacknowledged())
        for message in link.messages[done : done + 3]:
            message.ack()
    assert taken == 7 and broker.unacknowledged() == 0


def test_one_by_one_somebody_decides_before_each(
    broker: Broker, consume: Consume
) -> None:
    broker.publish("q", list(range(10)))
    link = consume(one_by_one=True)
    link.channel.qos.can_consume = lambda: len(link.messages) < 4
    link.take(4)
    for _ in range(5):
        link.turn()
    assert broker.unacknowledged() == 4 and broker.client.llen("q") == 6


def test_the_more_important_first(broker: Broker, consume: Consume) -> None:
    numbers = [9, 0, 6, 3, 0, 9, 3, 6]
    broker.publish("q", [{"priority": number} for number in numbers])
    found = consume().take(len(numbers))
    assert [body["priority"] for body in found] == sorted(numbers)


def test_queues_take_turns(broker: Broker, consume: Consume) -> None:
    for queue in "abc":
        broker.publish(queue, [f"{queue}{number}" for number in range(4)])
    link = consume("a", "b", "c", prefetch=5)
    first = link.take(5)
    assert sorted(first[:3]) == ["a0", "b0", "c0"]
    for message in link.messages[:5]:
        message.ack()
    after = link.take(10)[5:]
    counts = {queue: sum(body[0] == queue for body in first + after) for queue in "abc"}
    assert sorted(counts.values()) == [3, 3, 4]


def test_the_first_queue_first_where_that_is_wanted(
    broker: Broker, consume: Consume
) -> None:
    for queue in "ab":
        broker.publish(queue, [f"{queue}{number}" for number in range(4)])
    found = consume("b", "a", queue_order_strategy="sorted").take(8)
    assert found == ["a0", "a1", "a2", "a3", "b0", "b1", "b2", "b3"]


def test_another_order_of_queues_is_asked_before_each(
    broker: Broker, consume: Consume
) -> None:
    for queue in "ab":
        broker.publish(queue, [f"{queue}{number}" for number in range(2)])
    link = consume("a", "b", queue_order_strategy=f"{__name__}:LastUsedFirst")
    assert link.take(4) in (["a0", "a1", "b0", "b1"], ["b0", "b1", "a0", "a1"])


class LastUsedFirst:
    def __init__(self) -> None:
        self.items: list[str] = []

    def update(self, items: list[str]) -> None:
        self.items[:] = items

    def consume(self, count: int) -> list[str]:
        return self.items[:count]

    def rotate(self, last: str) -> None:
        self.items.remove(last)
        self.items.insert(0, last)


def test_names_of_keys_have_their_prefix(broker: Broker, consume: Consume) -> None:
    broker.publish("q", [1, 2, 3], global_keyprefix="ours:")
    link = consume(global_keyprefix="ours:")
    assert link.take(3) == [1, 2, 3]
    assert broker.unacknowledged("ours:") == 3
    link.messages[0].ack()
    assert broker.unacknowledged("ours:") == 2
    broker.publish("q", [4], global_keyprefix="ours:")
    assert link.take(4)[-1] == 4


def test_a_queue_without_acks_has_no_notes(broker: Broker, consume: Consume) -> None:
    broker.publish("q", [1, 2])
    broker.publish("careless", [3, 4])
    link = consume("q", Queue("careless", no_ack=True))
    assert sorted(link.take(4)) == [1, 2, 3, 4]
    assert broker.unacknowledged() == 2


def test_no_more_than_one_step(broker: Broker, consume: Consume) -> None:
    broker.publish("q", list(range(MOST + 10)))
    link = consume()
    link.turn_until(lambda: link.messages)
    assert len(link.messages) == MOST


def test_what_has_no_note_goes_back_as_well(broker: Broker, consume: Consume) -> None:
    broker.publish("careless", [1, 2, 3])
    link = consume(Queue("careless", no_ack=True))

    def on_message(message: Any) -> None:
        raise ValueError("this one")

    link.on_message = on_message
    with pytest.raises(ValueError, match="this one"):
        link.take(1)
    link.end()
    # The first one was delivered, and that was all that was promised.
    assert broker.client.llen("careless") == 2 and broker.unacknowledged() == 0


def test_what_has_no_note_and_no_consumer_goes_back(
    broker: Broker, consume: Consume
) -> None:
    broker.publish("careless", [1, 2, 3])
    link = consume(Queue("careless", no_ack=True))
    link.tick()
    link.wait_for_bytes(link.channel.client.connection._sock)
    link.end()
    assert broker.client.llen("careless") == 3 and broker.unacknowledged() == 0


def test_large_messages_do_not_come_all_at_once(
    broker: Broker, consume: Consume
) -> None:
    bodies = ["x" * ENOUGH] * 3
    broker.publish("q", bodies)
    link = consume()
    link.turn_until(lambda: link.messages)
    assert len(link.messages) == 1
    assert link.take(3) == bodies


@pytest.mark.parametrize(
    "junk",
    [
        b"junk",
        b"{junk}",
        b"\xff",
        b"",
        b"null",
        b"[]",
        b"{}",
        b'{"properties": []}',
        b'{"properties": {"delivery_info": 1, "body_encoding": "base64"}, "body": "a"}',
        b'{"properties": {"delivery_info": {}, "body_encoding": "rot13"}, "body": "a"}',
        b"[" * 100_000,
    ],
    ids=lambda junk: repr(junk[:20]),
)
def test_what_is_no_message_disturbs_nobody(
    broker: Broker, consume: Consume, junk: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    broker.publish("q", [1])
    broker.client.lpush("q", junk)
    broker.publish("q", [2])
    link = consume()
    assert link.take(2) == [1, 2]
    for message in link.messages:
        message.ack()
    assert broker.unacknowledged() == 0 and broker.client.llen("q") == 0
    assert "what was in queue 'q' is no message" in caplog.text


def test_a_key_that_is_no_queue_holds_up_no_other(
    broker: Broker, consume: Consume, caplog: pytest.LogCaptureFixture
) -> None:
    link = consume("a", "b")
    broker.publish("a", [1])
    link.take(1)
    broker.client.set("a", "text")
    broker.publish("b", [2])
    assert link.take(2) == [1, 2]
    link.turn_until(lambda: "Redis hands out no message: WRONGTYPE" in caplog.text)
    broker.client.delete("a")
    broker.publish("a", [3])
    assert link.take(3) == [1, 2, 3]


def test_a_redis_that_is_full_hands_out_what_it_has(servers: Servers) -> None:
    server = servers.private("redis")
    broker = Broker(server.lease().url)
    broker.publish("q", [1, 2, 3])
    link = Link(broker.url, [Queue("q")])
    try:
        broker.client.config_set("maxmemory", 1)
        assert link.take(3) == [1, 2, 3] and broker.unacknowledged() == 3
    finally:
        broker.client.config_set("maxmemory", 0)
        link.close()
        broker.client.close()
        server.teardown()


def test_acks_are_gathered_and_sent_at_once(broker: Broker, consume: Consume) -> None:
    broker.publish("q", list(range(30)))
    link = consume()
    link.take(30)
    assert link.fetching is not None
    link.fetching.gather()
    for message in link.messages[:10]:
        message.ack()
    assert broker.unacknowledged() == 30
    link.fetching.flush()
    assert broker.unacknowledged() == 20
    link.messages[10].ack()
    assert broker.unacknowledged() == 19


def test_acks_make_room_for_more(broker: Broker, consume: Consume) -> None:
    broker.publish("q", list(range(20)))
    link = consume(prefetch=5)
    assert link.fetching is not None
    while len(link.messages) < 20:
        link.take(len(link.messages) + 1)
        link.fetching.gather()
        for message in link.messages:
            if not message.acknowledged:
                message.ack()
        link.fetching.flush()
    assert [message.payload for message in link.messages] == list(range(20))


def test_a_handler_that_raises_costs_no_message(
    broker: Broker, consume: Consume
) -> None:
    broker.publish("q", list(range(10)))
    link = consume()

    def on_message(message: Any) -> None:
        link.messages.append(message)
        if message.payload == 4:
            raise ValueError("this one")

    link.on_message = on_message
    with pytest.raises(ValueError, match="this one"):
        link.take(10)
    assert len(link.messages) == 5 and broker.unacknowledged() == 10
    link.end()
    assert broker.unacknowledged() == 0 and broker.client.llen("q") == 10


# --- connections that are lost --------------------------------------------------------


@pytest.fixture
def proxy(broker: Broker) -> Iterator[Proxy]:
    proxy = Proxy(broker.url)
    yield proxy
    proxy.close()


def reconnect(link: Link) -> None:
    """Notice that the connection is lost, and make another."""
    errors = link.connection.connection_errors  # type: ignore[union-attr]
    with pytest.raises(errors):
        for _ in range(1000):
            link.turn()
    link.connect_again()


def test_an_answer_that_is_cut_comes_again(
    broker: Broker, consume: Consume, proxy: Proxy
) -> None:
    link = consume(url=proxy.url)
    link.settle()
    proxy.hold()
    broker.publish("q", [[number, "x" * 100] for number in range(30)])
    proxy.cut_after("down", 2000)
    proxy.let_go()
    reconnect(link)
    assert proxy.cuts == 1
    # None waits for the visibility timeout, which is an hour.
    found = [body[0] for body in link.take(30)]
    assert sorted(found) == list(range(30))
    assert found == list(range(30))
    assert broker.unacknowledged() == 30


def test_acks_that_were_not_sent_are_sent_by_the_next_connection(
    broker: Broker, consume: Consume, proxy: Proxy
) -> None:
    broker.publish("q", list(range(10)))
    link = consume(url=proxy.url)
    link.take(10)
    assert link.fetching is not None and link.connection is not None
    link.fetching.gather()
    for message in link.messages[:9]:
        message.ack()
    proxy.cut_after("up", 0)
    with pytest.raises(link.fetching.errors):
        link.fetching.flush()
    link.connect_again()
    link.turn_until(lambda: broker.unacknowledged() <= 1)


def test_a_bell_that_is_lost_is_replaced(broker: Broker, consume: Consume) -> None:
    link = consume()
    link.settle()
    assert link.fetching is not None
    bell = link.fetching._bell
    assert bell is not None
    broker.client.client_kill_filter(_id=bell._id)
    link.turn_until(lambda: link.fetching._bell is not bell)  # type: ignore[union-attr]
    link.turn_until(lambda: not link.channel._in_poll)
    link.fetching._timer.cancel()
    broker.publish("q", [1])
    assert link.take(1) == [1]


def test_a_bell_that_is_silent_holds_up_nothing_for_long(
    broker: Broker, consume: Consume
) -> None:
    link = consume()
    link.settle()
    assert link.fetching is not None
    bell = link.fetching._bell
    assert bell is not None
    link.hub.remove_reader(bell._sock)  # as if the network had forgotten it
    broker.publish("q", [1])
    assert link.take(1) == [1]
    assert bell.closed
    link.turn_until(lambda: link.fetching._bell is not bell)  # type: ignore[union-attr]
    link.settle()
    link.fetching._timer.cancel()
    broker.publish("q", [2])
    assert link.take(2) == [1, 2]


def test_redis_says_that_the_bell_is_gone(broker: Broker, consume: Consume) -> None:
    link = consume()
    link.settle()
    assert link.fetching is not None and link.fetching._bell is not None
    link.fetching._bell.close()
    broker.publish("q", [1])
    client = link.channel.client.connection
    if pushes(client):
        link.wait_for_bytes(client._sock)
    for _ in range(3):
        link.turn()  # it waits for no answer
    assert link.take(1) == [1]


def test_whoever_comes_too_late_does_not_come_at_once(
    broker: Broker, consume: Consume
) -> None:
    link = consume()
    link.settle()
    for number in range(20):
        broker.publish("q", [number])
        broker.client.rpop("q")  # another one has it
        link.turn()
    broker.publish("q", ["mine"])
    assert "mine" in link.take(1)


# --- where it is not possible ---------------------------------------------------------


@pytest.mark.parametrize("lacks", ["-eval", "-client|tracking"])
def test_who_may_not_fetch_is_served_by_kombu(
    broker: Broker, consume: Consume, lacks: str, caplog: pytest.LogCaptureFixture
) -> None:
    name = f"user-{uuid.uuid4().hex}"
    rules = ("on", ">secret", "~*", "&*", "+@all", lacks)
    broker.client.execute_command("ACL", "SETUSER", name, *rules)
    try:
        broker.publish("q", [1, 2])
        link = consume(url=broker.url.replace("//", f"//{name}:secret@"))
        assert link.take(2) == [1, 2]
        assert broker.unacknowledged() == 2
        link.messages[0].ack()
        assert broker.unacknowledged() == 1
        assert "linepool_buffered_broker has no effect: Redis refuses" in caplog.text
    finally:
        broker.client.execute_command("ACL", "DELUSER", name)


def test_other_transports_are_left_alone(broker: Broker) -> None:
    hub = Hub()
    with Connection("memory://") as connection:
        consumer = Consumer(connection.default_channel, [Queue("q")])
        assert fetching(consumer, hub, False, None) is None
    with Connection(broker.url, transport_options={"ack_emulation": False}) as other:
        consumer = Consumer(other.default_channel, [Queue("q")])
        assert fetching(consumer, hub, False, None) is None
        assert fetching(consumer, None, False, None) is None
    hub.close()


# --- workers --------------------------------------------------------------------------


def test_two_workers_run_each_task_once(start_worker: Any, tmp_path: Path) -> None:
    conf = {"worker_prefetch_multiplier": 2, **FAST}
    worker = start_worker("redis", LIVES, args=("-c", "2"), conf=conf)
    other = start_worker(args=("-c", "2"), project=worker.project)
    paths = [tmp_path / str(number) for number in range(100)]
    results = [worker.send("lives.work", str(path), 1) for path in paths]
    for result in results:
        worker.result(result)
    assert [len(path.read_text().splitlines()) for path in paths] == [1] * 100
    done = [w.inspect("stats")["total"].get("lives.work", 0) for w in (worker, other)]
    assert sum(done) == 100 and min(done) > 0

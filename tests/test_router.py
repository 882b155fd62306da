"""Which pool serves which task."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Optional

import pytest
from celery import Celery
from kombu import Exchange, Queue

from celery_linepool.router import Router
from celery_linepool.settings import PoolSettings, SettingError
from celery_linepool.tasks import ForeignTask, register


def router(**pools: dict[str, tuple[str, ...]]) -> Router:
    return Router(
        {
            name: PoolSettings(name=name, command=("x",), **options)
            for name, options in pools.items()
        }
    )


TWO = {
    "rails": {"tasks": ("billing.*", "mail.send")},
    "node": {"tasks": ("*.render", "billing.refund"), "queues": ("render", "slow")},
}


@pytest.fixture
def app() -> Iterator[Celery]:
    app = Celery("router", set_as_current=False, broker="memory://")
    yield app
    app.close()


def task(app: Celery, name: str, pool: Optional[str] = None) -> ForeignTask:
    found = register(app, name)
    found.pool = pool
    return found


@pytest.mark.parametrize(
    "name, pool",
    [
        ("billing.charge", "rails"),
        ("pdf.render", "node"),
        ("mail.send", "rails"),
        ("mail.receive", None),
        # Two cover it: the one that was written first.
        ("billing.refund", "rails"),
        ("billing.render", "rails"),
        # No glob covers Celery's own.
        ("celery.render", None),
    ],
)
def test_by_its_name(name: str, pool: Optional[str]) -> None:
    assert router(**TWO).for_name(name) == pool


def test_a_lone_pool_does_not_get_celerys_own_tasks() -> None:
    assert router(default={"tasks": ("*",)}).for_name("celery.backend_cleanup") is None


@pytest.mark.parametrize(
    "queue, pool",
    [("render", "node"), ("slow", "node"), ("celery", None), (None, None)],
)
def test_by_its_queue(queue: Optional[str], pool: Optional[str]) -> None:
    assert router(**TWO).for_queue(queue) == pool


@pytest.mark.parametrize(
    "name, own, queue, pool",
    [
        # The stub's own word counts most, then the name, then the queue.
        ("billing.charge", "node", "celery", "node"),
        ("billing.charge", None, "render", "rails"),
        ("video.cut", None, "render", "node"),
        ("video.cut", None, "celery", None),
        ("video.cut", None, None, None),
        ("video.cut", "no-such-pool", "render", None),
    ],
)
def test_a_foreign_task(
    app: Celery,
    name: str,
    own: Optional[str],
    queue: Optional[str],
    pool: Optional[str],
) -> None:
    routes = router(**TWO)
    stub = task(app, name, own)
    for _ in range(2):  # the second time from memory
        assert routes.for_task(stub, queue) == pool


def test_the_queue_is_not_remembered_for_the_name(app: Celery) -> None:
    routes = router(**TWO)
    stub = task(app, "video.cut")
    assert routes.for_task(stub, "render") == "node"
    assert routes.for_task(stub, "celery") is None


def test_a_lone_pool_serves_every_stub(app: Celery) -> None:
    routes = router(rails={"tasks": ("billing.*",)})
    assert routes.for_task(task(app, "other.task"), None) == "rails"


def test_a_queue_has_one_pool() -> None:
    with pytest.raises(SettingError) as caught:
        router(a={"queues": ("x", "y")}, b={"queues": ("y",)})
    assert str(caught.value) == (
        "linepool_pools['b']['queues']: names 'y', which pool 'a' serves already"
    )


def test_one_pool_may_name_a_queue_twice() -> None:
    assert router(a={"queues": ("x", "x")}).for_queue("x") == "a"


def test_names_without_wildcards_are_known_from_the_start() -> None:
    routes = router(
        a={"tasks": ("billing.*", "mail.send", "x?", "celery.chord")},
        b={"tasks": ("a.[b]", "pdf.render")},
    )
    assert routes.literal_names() == ["mail.send", "pdf.render"]


def test_whether_queues_matter_at_all() -> None:
    assert router(**TWO).knows_queues is True
    assert router(a={"tasks": ("*",)}).knows_queues is False


@pytest.mark.parametrize(
    "info, queue",
    [
        # As Celery's default queues say it: their name is the routing key.
        ({"exchange": "", "routing_key": "celery"}, "celery"),
        ({"exchange": "media", "routing_key": "media.video"}, "videos"),
        # The same key in another exchange.
        ({"exchange": "other", "routing_key": "media.video"}, "media.video"),
        ({"routing_key": "celery"}, "celery"),
        ({}, None),
        (None, None),
    ],
)
def test_the_queue_of_a_message(info: Any, queue: Optional[str]) -> None:
    routes = router(**TWO)
    media = Exchange("media", type="topic")
    routes.learn_queues(
        {
            "celery": Queue("celery", Exchange(""), routing_key="celery"),
            "videos": Queue("videos", media, routing_key="media.video"),
        }
    )
    assert routes.queue_of(info) == queue


def test_queues_that_are_consumed_no_more_are_forgotten() -> None:
    routes = router(**TWO)
    routes.learn_queues({"videos": Queue("videos", Exchange("m"), routing_key="v")})
    routes.learn_queues({})
    assert routes.queue_of({"exchange": "m", "routing_key": "v"}) == "v"

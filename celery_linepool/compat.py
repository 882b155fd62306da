"""Every branch on a version of Celery or kombu, with what changed and when."""

from __future__ import annotations

from typing import Any

import celery

#: Celery 5.7 settles a hard time limit whole in ``Request.on_timeout`` (it stores the
#: failure, calls ``on_failure`` and ``after_return``, sends signal and event). Before,
#: that only stored it, and the rest had to go through ``on_failure``.
LIMIT_THROUGH_TIMEOUT_CALLBACK: bool = celery.VERSION >= (5, 7)


#: Without an event loop, Celery before 5.7 keeps acks for the consumer's next turn,
#: which comes after up to two seconds of waiting for a message; and none comes while
#: the prefetch count is used up. Since then it runs them where they are made.
ACKS_WAIT_FOR_CONSUMER: bool = celery.VERSION < (5, 7)


def run_pending(hub: Any) -> None:
    """Run what was given to ``hub.call_soon``, such as acks.

    Nobody runs the event loop while a pool drains. Celery 5.7's prefork pool does the
    same; no version has a public way.
    """
    for call in hub._pop_ready():
        call()


def has_read(channel: Any) -> None:
    """Tell kombu's channel of Redis that the answer it awaited was read.

    Newer versions, 5.7 among them, renew there what they are logged in with.
    """
    if hasattr(channel, "_flush_brpop_reauth"):
        channel._flush_brpop_reauth()


def take_connection(pool: Any) -> Any:
    """One of redis-py's connections, from its pool.

    redis-py before 5.3 wants the name of a command, and does nothing with it.
    """
    import redis

    return pool.get_connection(*(("EXEC",) if redis.VERSION < (5, 3) else ()))

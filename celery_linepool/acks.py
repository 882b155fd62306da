"""Acks of one channel to RabbitMQ: as few as say the same.

One ack may stand for all messages before its own, too. It does here where all of those
have been acknowledged or rejected, and never for one that is still being worked on.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Any, List, Set

#: Messages that may be open while later ones are acknowledged. With more, each ack goes
#: out by itself: so many are not being worked on but want no ack (`no_ack`), or wait
#: for their time.
MOST = 1000


class Acks:
    """Stands between a channel of py-amqp and those who acknowledge its messages.

    The broker numbers the messages of a channel from 1 on: its delivery tags.
    """

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self._send, self._send_reject = channel.basic_ack, channel.basic_reject
        channel.basic_ack, channel.basic_reject = self._ack, self._reject
        self._gathers = False
        self._gathered: List[int] = []
        #: The highest tag that was settled, and those below it that are not.
        self._highest = 0
        self._open: Set[int] = set()

    def gather(self) -> None:
        """Keep acks until `flush`, which has to follow."""
        self._gathers = True

    def flush(self) -> None:
        """Send the acks that were kept."""
        self._gathers = False
        if self._gathered:
            tags, self._gathered = sorted(self._gathered), []
            through = min(self._open, default=self._highest + 1)
            covered = bisect_left(tags, through)
            if covered:
                self._send(tags[covered - 1], multiple=covered > 1)
            for tag in tags[covered:]:
                self._send(tag)

    def close(self) -> None:
        """Stand aside. What was kept is not sent: its connection may be lost."""
        self._gathers = False
        self._gathered.clear()
        self._channel.basic_ack = self._send
        self._channel.basic_reject = self._send_reject

    def _ack(self, delivery_tag: int, multiple: bool = False) -> None:
        if multiple:  # nobody in Celery does
            self.flush()
            self._highest = max(self._highest, delivery_tag)
            self._open = {tag for tag in self._open if tag > delivery_tag}
            self._send(delivery_tag, multiple=True)
            return
        self._settle(delivery_tag)
        self._gathered.append(delivery_tag)
        if not self._gathers:
            self.flush()

    def _reject(self, delivery_tag: int, requeue: bool) -> None:
        self._settle(delivery_tag)
        self._send_reject(delivery_tag, requeue)

    def _settle(self, tag: int) -> None:
        if tag <= self._highest:
            self._open.discard(tag)
            return
        self._open.update(range(self._highest + 1, tag))
        self._highest = tag
        if len(self._open) > MOST:
            self.flush()
            self.close()

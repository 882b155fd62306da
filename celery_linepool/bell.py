"""A connection on which Redis tells that a queue may have something again.

Redis calls that client tracking: it tells, once, when a key is changed that a client
has read. What it says is of no interest here, only that it says something.
"""

from __future__ import annotations

import ssl
from typing import Any

#: Where Redis publishes it for connections that speak its older protocol.
CHANNEL = "__redis__:invalidate"


def pushes(connection: Any) -> bool:
    """Whether Redis may say something on it that is no answer: its third protocol."""
    return int(getattr(connection, "protocol", None) or 2) >= 3


def hear(connection: Any) -> None:
    """Read what was said on a connection that waits for no answer.

    That its bell is gone, for instance. Whoever waited for an answer behind it would
    wait for ever.

    Raises:
        redis.exceptions.ConnectionError: it is closed.
    """
    if pushes(connection):
        connection.read_response(push_request=True)
    else:
        connection.read_response()


class Bell:
    """Rings for one other connection to Redis.

    Arguments:
        pool: redis-py's, of which the connection has its address and its password.
        rung: called in the event loop when there may be something, or when the bell
            is lost; then `closed` is true.

    Raises:
        redis.exceptions.RedisError: there is no connection, or it may not subscribe.
    """

    def __init__(self, pool: Any, hub: Any, rung: Any) -> None:
        self.closed = False
        self._hub = hub
        self._rung = rung
        # Not one of the pool's: those are lent, and reconnect by themselves.
        self._connection = pool.connection_class(**pool.connection_kwargs)
        self._connection.connect()
        self._id = self.ask(self._connection, "CLIENT", "ID")
        self._connection.send_command("SUBSCRIBE", CHANNEL)
        self._sock = self._connection._sock
        if pushes(self._connection):
            # It would come without having subscribed, whatever the answer to that is.
            # But Redis does not end an idle subscriber.
            self._sock.recv(65536)
        else:
            self._connection.read_response()
        self._sock.setblocking(False)
        hub.add_reader(self._sock, self._read)

    @staticmethod
    def ask(connection: Any, *command: str) -> Any:
        connection.send_command(*command)
        return connection.read_response()

    def ring_for(self, connection: Any) -> None:
        """Ring when a key that this connection has read is changed by another."""
        self.ask(
            connection,
            *("CLIENT", "TRACKING", "ON", "REDIRECT", str(self._id), "NOLOOP"),
        )

    def _read(self) -> None:
        try:
            lost = not self._sock.recv(65536)
        except (BlockingIOError, ssl.SSLWantReadError):
            return
        except OSError:
            lost = True
        if lost:
            self.close()
        self._rung()

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._hub.remove_reader(self._sock)
            self._connection.disconnect()

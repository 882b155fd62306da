"""A connection on which Redis tells that a queue may have something again.

Redis calls that client tracking: it tells, once, when a key is changed that a client
has read. What it says is of no interest here, only that it says something.
"""

from __future__ import annotations

import ssl
from typing import Any

#: Where Redis publishes it for connections that speak its older protocol.
CHANNEL = "__redis__:invalidate"


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
        if int(getattr(self._connection, "protocol", None) or 2) < 3:
            self._connection.read_response()
        else:
            # In the newer protocol it would come without having subscribed, whatever the
            # answer to that is; but Redis does not end an idle subscriber.
            self._sock.recv(65536)
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

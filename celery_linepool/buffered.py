"""The worker's connection to RabbitMQ, read and written in large pieces.

py-amqp makes some sixteen system calls for a message: three reads and two changes of
the socket's mode for each of its three frames, and a write for its ack. Each of them
lets another thread have the interpreter, and the main thread then waits until it gets
it back. Here one read takes what the socket has, and the acks of one turn of the event
loop go out in one write.

Nothing is held back: what was read is handed on before the event loop goes on, and what
was written is sent before it waits. All of it belongs to the main thread.
"""

from __future__ import annotations

import socket
from collections import deque
from contextlib import nullcontext
from struct import Struct
from typing import Any, ContextManager, Deque, List, Optional, Tuple

from amqp.exceptions import AMQPError, UnexpectedFrame
from amqp.transport import TCPTransport

from .acks import Acks

#: Bytes of one read, and of what is written at the most before it is sent: some eighty
#: messages of a usual size.
SIZE = 65536
#: A frame: its type, its channel and its size; that many bytes; its end.
_HEADER = Struct(">BHI")
_END = 0xCE

Frame = Tuple[int, int, bytes]


def split(data: bytes) -> Tuple[List[Frame], bytes]:
    """Whole frames off the beginning of what was read, and the rest.

    Raises:
        UnexpectedFrame: a frame does not end where it should.
    """
    frames, at = [], 0
    while len(data) - at > _HEADER.size:
        kind, channel, size = _HEADER.unpack_from(data, at)
        begin = at + _HEADER.size
        end = begin + size
        if end >= len(data):
            break
        if data[end] != _END:
            raise UnexpectedFrame(f"a frame that ends with {data[end]:#04x}")
        frames.append((kind, channel, data[begin:end]))
        at = end + 1
    return frames, data[at:]


class Buffered:
    """Stands between py-amqp and the socket of one connection.

    Arguments:
        connection: py-amqp's connection, not kombu's.
        stock: kombu's own way of reading from it; it deals with whatever is wrong.
        hub: the worker's event loop.
        channel: the one that the tasks come through.
    """

    def __init__(self, connection: Any, stock: Any, hub: Any, channel: Any) -> None:
        self.errors = (OSError, AMQPError)
        self._acks = Acks(channel)
        self._connection = connection
        self._transport = connection.transport
        self._stock = stock
        self._hub = hub
        self._frames: Deque[Frame] = deque()
        self._unsent = bytearray()
        self._gathers = False
        self._send = self._transport._write
        self._having_timeout = self._transport.having_timeout
        self._read_frame = self._transport.read_frame
        self._transport._write = self._write
        self._transport.having_timeout = self._patient
        self._transport.read_frame = self._next_frame
        hub.add_reader(connection.sock, self.readable, connection, hub)
        # Called after acks and timers, before the event loop waits.
        hub.on_tick.add(self.flush)

    def close(self) -> None:
        """The connection is not the worker's any more."""
        self._hub.on_tick.discard(self.flush)
        self._acks.close()
        self._gathers = False

    # --- reading ----------------------------------------------------------------------

    def readable(self, connection: Any, hub: Any) -> None:
        """Called by the event loop, in place of kombu's own reader."""
        if not self._frames and not self._fill():
            self._stock(connection, hub)
            return
        try:
            while self._frames and connection.connected:
                connection.on_inbound_frame(self._frames.popleft())
        finally:
            if self._frames:  # one of them raised: no more bytes need come for the rest
                hub.call_soon(self._rest)

    def _rest(self) -> None:
        if self._frames and self._connection.connected:
            self.readable(self._connection, self._hub)

    def _fill(self) -> bool:
        """Take what the socket has; False if something is wrong with it."""
        try:
            data = self._transport.sock.recv(SIZE, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        except (OSError, AttributeError):
            return False
        if data:
            # py-amqp reads on from what is left.
            data = self._transport._read_buffer + data
            frames, self._transport._read_buffer = split(data)
            self._frames += frames
        return bool(data)

    def _patient(self, timeout: Optional[float]) -> ContextManager[Any]:
        # Whoever waits for the broker waits for an answer to what was written.
        self.flush()
        if self._frames:
            return nullcontext()
        waits: ContextManager[Any] = self._having_timeout(timeout)
        return waits

    def _next_frame(self) -> Any:
        return self._frames.popleft() if self._frames else self._read_frame()

    # --- writing ----------------------------------------------------------------------

    def gather(self) -> None:
        """Keep what is written until the event loop waits, or `flush` is called."""
        self._gathers = True
        self._acks.gather()

    def flush(self) -> None:
        """Send what was kept.

        Raises:
            one of `errors`: the connection is lost, or its channel.
        """
        self._acks.flush()
        self._gathers = False
        if self._unsent:
            unsent, self._unsent = self._unsent, bytearray()
            self._send(unsent)

    def _write(self, data: Any) -> None:
        if not self._gathers:
            self._send(data)
            return
        self._unsent += data
        if len(self._unsent) > SIZE:
            self.flush()


def buffered(connection: Any, hub: Any, channel: Any) -> Optional[Buffered]:
    """The connection of a worker's consumer, buffered; None where that is not possible.

    It is possible with RabbitMQ through py-amqp without TLS, and with an event loop.
    """
    if hub is None or connection.transport.driver_name != "py-amqp":
        return None
    wire = connection.connection
    if type(wire.transport) is not TCPTransport:
        return None
    return Buffered(wire, connection.transport.on_readable, hub, channel)

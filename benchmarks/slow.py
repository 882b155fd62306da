"""`python -m benchmarks.slow HOST:PORT MILLISECONDS`: a server that is further away.

A proxy that holds each answer back for so long. Its first line says its own port.
"""

from __future__ import annotations

import socket
import sys
import threading
import time


def pump(source: socket.socket, target: socket.socket, seconds: float) -> None:
    """Pass on what comes, until one end is closed; each piece so much later."""
    try:
        while True:
            data = source.recv(1 << 16)
            if not data:
                break
            if seconds:
                time.sleep(seconds)
            target.sendall(data)
    except OSError:
        pass  # one of both is gone: so is the connection
    for end in (source, target):
        try:
            end.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it was closed already


def main(address: str, milliseconds: str) -> None:
    host, _, port = address.rpartition(":")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        while True:
            near, _ = listener.accept()
            far = socket.create_connection((host, int(port)))
            for end in (near, far):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for way in (
                (near, far, 0.0),
                (far, near, float(milliseconds) / 1000),
            ):
                threading.Thread(target=pump, args=way, daemon=True).start()


if __name__ == "__main__":
    main(*sys.argv[1:])

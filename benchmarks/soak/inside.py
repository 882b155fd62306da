"""What a worker's memory holds, told by the worker itself to whoever connects.

What the system counts for a process is what its allocators have taken, and they keep
what they needed once: it grows with the worst moment so far, in steps, and says little
about what is lost. Python and malloc know what is in use just now.

It is asked through a socket, since the broker may be away.
"""

from __future__ import annotations

import ctypes
import gc
import json
import socket
import sys
import threading
from pathlib import Path
from typing import Any, Callable, Dict, Optional

#: Seconds to wait for an answer: a worker that is held up answers later.
PATIENCE = 60.0


class MallInfo(ctypes.Structure):
    """``struct mallinfo2`` of glibc."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks "
        "fordblks keepcost".split()
    ]


def malloc_mib() -> Optional[float]:
    """What malloc has given out and not got back; None where it does not say it.

    Python asks it for all that is larger than 512 bytes, and C code for everything.
    """
    mallinfo2: Optional[Callable[[], Any]]
    mallinfo2 = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if mallinfo2 is None:
        return None
    mallinfo2.restype = MallInfo  # type: ignore[attr-defined]
    info = mallinfo2()
    return round((info.uordblks + info.hblkhd) / 2**20, 3)


def held() -> Dict[str, Any]:
    """What is in use, without what nobody can reach any more."""
    gc.collect()
    return {"blocks": sys.getallocatedblocks(), "malloc_mib": malloc_mib()}


def listen(path: str) -> None:
    """Answer at this path, in a thread, as long as the process lives."""
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen()

    def answer() -> None:
        while True:
            with server.accept()[0] as client:
                client.sendall(json.dumps(held()).encode())

    threading.Thread(target=answer, name="soak", daemon=True).start()


def ask(path: Path) -> Dict[str, Any]:
    """What a process holds that listens at this path."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(PATIENCE)
        client.connect(str(path))
        found: Dict[str, Any] = json.loads(client.makefile().read())
        return found

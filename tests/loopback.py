"""Nothing that a test does reaches another machine: an audit hook refuses it.

For the process that imports it: the tests themselves, and the workers that they start.
Hosts that are network namespaces of a test are on this machine.
"""

from __future__ import annotations

import ipaddress
import sys
from typing import Any

__all__ = ["BEYOND"]

#: Addresses that were refused and that no test has looked at.
BEYOND: list[str] = []

HERE = [
    ipaddress.ip_network(text)
    # The second one is of the hosts in tests/hosts.py.
    for text in ("127.0.0.0/8", "192.0.2.0/24", "0.0.0.0/32", "::1/128", "::/128")
]


def is_here(address: Any) -> bool:
    """Whether it is an address of this machine. Names but localhost are not."""
    if not isinstance(address, tuple) or not isinstance(address[0], str):
        return True  # a path, a netlink, a vsock
    name = address[0].partition("%")[0]
    if name in ("", "localhost"):
        return True
    try:
        ip = ipaddress.ip_address(name)
    except ValueError:
        return False
    return any(ip in network for network in HERE)


def refuse(event: str, args: tuple[Any, ...]) -> None:
    if event in ("socket.connect", "socket.sendto") and not is_here(args[1]):
        BEYOND.append(str(args[1][0]))
        raise PermissionError(f"a test may not reach {args[1][0]}, beyond this machine")


sys.addaudithook(refuse)

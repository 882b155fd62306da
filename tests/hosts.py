"""Several machines on one: each host is a network namespace, with a cable to a switch.

A namespace lives as long as a process in it, so nothing of it is left when that one is
killed, and the session's watchdog kills it in any case. Needs root.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from localprocess import LocalProcess, eventually, need

__all__ = ["Host", "Network"]


class Namespace:
    """A network of its own, with nothing in it but a loopback."""

    def __init__(self, folder: Path, name: str) -> None:
        argv = ["unshare", "--net", "sleep", "infinity"]
        self._holder = LocalProcess(argv, log=folder / f"{name}.log", cwd=folder)
        own = os.readlink("/proc/self/ns/net")
        where = f"/proc/{self._holder.pid}/ns/net"

        def is_there() -> bool:
            # Without root "unshare" says so, and ends.
            assert self._holder.status == "running", self._holder.all_logs()
            return os.readlink(where) != own

        eventually(is_there)
        self.pid = self._holder.pid
        self.ip("link", "set", "lo", "up")

    def inside(self, *argv: str) -> list[str]:
        """A command line that runs in it."""
        return ["nsenter", f"--net=/proc/{self.pid}/ns/net", *argv]

    def ip(self, *arguments: str) -> None:
        argv = self.inside("ip", *arguments)
        done = subprocess.run(argv, capture_output=True, text=True)
        assert done.returncode == 0, f"{argv}: {done.stderr}"

    def close(self) -> None:
        self._holder.destroy()


class Host:
    """A machine: an address, a cable, and what runs on it."""

    def __init__(self, network: "Network", name: str, address: str) -> None:
        self.name = name
        self.address = address
        self._network = network
        self._namespace = network.namespace(name)
        self._processes: list[LocalProcess] = []
        switch = network.switch
        peer = ("peer", "name", "eth0", "netns", str(self._namespace.pid))
        switch.ip("link", "add", name, "type", "veth", *peer)
        switch.ip("link", "set", name, "master", "switch", "up")
        self._namespace.ip("address", "add", f"{address}/24", "dev", "eth0")
        self._namespace.ip("link", "set", "eth0", "up")

    def start(
        self, *argv: str, log: Path, env: Mapping[str, str], cwd: Path
    ) -> LocalProcess:
        process = LocalProcess(
            self._namespace.inside(*argv),
            log=log,
            env={**env, "LINEPOOL_TEST_HOST": self.name},
            cwd=cwd,
            prefix=self.name,
        )
        self._processes.append(process)
        self._network.cleanup.callback(process.destroy)
        return process

    def cut_off(self) -> None:
        """Pull its cable: nobody is told."""
        self._network.switch.ip("link", "set", self.name, "down")

    def plug_in(self) -> None:
        self._network.switch.ip("link", "set", self.name, "up")

    def lose_power(self) -> None:
        """All of it is gone, and no connection of it is closed."""
        self.cut_off()
        while self._processes:
            self._processes.pop().destroy()


class Network:
    """A switch, and hosts around it."""

    def __init__(self, folder: Path, cleanup: ExitStack) -> None:
        need(shutil.which("ip"), "ip", "iproute2")
        self.cleanup = cleanup
        self._folder = folder
        self._numbers = itertools.count(1)
        self.switch = self.namespace("switch")
        self.switch.ip("link", "add", "switch", "type", "bridge")
        self.switch.ip("link", "set", "switch", "up")

    def namespace(self, name: str) -> Namespace:
        namespace = Namespace(self._folder, name)
        self.cleanup.callback(namespace.close)
        return namespace

    def host(self, name: str) -> Host:
        # Of the addresses that are set aside for documentation.
        return Host(self, name, f"192.0.2.{next(self._numbers)}")

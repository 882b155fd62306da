"""A PostgreSQL server of the test's own: private socket, data in a temporary folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from leaks import LeakGuard
from localprocess import LocalProcess, eventually, need

#: It refuses to run as root.
USER = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
#: Its clients die here, not itself.
OPTIONS = ["-c", "fsync=off", "-c", "listen_addresses="]


def program(name: str) -> str:
    """Debian keeps those of the server out of PATH."""
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    path = os.pathsep.join([*map(str, places), os.environ["PATH"]])
    return need(shutil.which(name, path=path), name, "postgresql")


class PostgreSQL:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        #: As Rails and psql both understand it.
        self.url = f"postgresql://postgres@{quote(str(folder), safe='')}/shop"
        user = USER if os.geteuid() == 0 else []
        if user:
            shutil.chown(folder, "nobody", "nogroup")
        data = str(folder / "data")
        subprocess.run(
            [
                *user,
                program("initdb"),
                "--no-sync",
                "-A",
                "trust",
                "-U",
                "postgres",
                data,
            ],
            cwd=folder,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        argv = [*user, program("postgres"), "-D", data, "-k", str(folder), *OPTIONS]
        self._server = LocalProcess(argv, log=folder / "log", cwd=folder)

    def wait_until_ready(self) -> None:
        ready = "ready to accept connections"
        eventually(lambda: ready in self._server.all_logs())

    def close(self) -> None:
        # Who is still connected is cut off.
        self._server.kill("SIGINT")
        assert self._server.wait(60) == 0, self._server.all_logs()


@pytest.fixture
def postgres(leak_guard: LeakGuard) -> Iterator[PostgreSQL]:
    # Not in pytest's folder, which is closed to other users.
    with tempfile.TemporaryDirectory(prefix="postgres-") as folder:
        server = PostgreSQL(Path(folder))
        try:
            server.wait_until_ready()
            yield server
        finally:
            server.close()

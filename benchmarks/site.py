"""Where the contenders run: servers and folders by name, each made when it is needed.

`redis`, `rabbitmq`: a corner of a server; `slow:5`: the same Redis, each answer 5 ms
later; `node`, `puma`: the work behind HTTP; `rails`: the folder of the Rails app.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Callable, ContextManager, Dict, Iterator, List, Optional

HERE = Path(__file__).parent
HOME = HERE.parent
sys.path.insert(0, str(HOME / "tests"))
from localprocess import Servers, eventually, free_ports  # noqa: E402

RAILS_ENV = {
    **{"RAILS_ENV": "production", "RACK_ENV": "production"},
    **{"SECRET_KEY_BASE": "none", "RUBYOPT": "-W0"},
}
#: Two processes, one for each core, and Rails' usual number of threads in each.
PUMA = ("bundle", "exec", "puma", "--preload", "-w", "2", "-t", "5:5")


class Site:
    """`site["redis"]` is its URL; all is gone after `close`.

    Arguments:
        servers: Redis and RabbitMQ, if somebody has them already.
    """

    def __init__(self, servers: Optional[Servers] = None) -> None:
        self._stack = ExitStack()
        self._made: Dict[str, str] = {}
        #: The processes that do a part of the contenders' work.
        self.pids: Dict[str, int] = {}
        self.folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        if servers is None:
            servers = Servers(self._server_folder)
            self._stack.callback(servers.close)
        self.servers = servers

    def _server_folder(self, kind: str) -> Path:
        return Path(tempfile.mkdtemp(prefix=kind, dir=self.folder))

    def __getitem__(self, name: str) -> str:
        if name not in self._made:
            kind, _, detail = name.partition(":")
            maker = MAKERS[kind](self, detail or kind)
            self._made[name] = self._stack.enter_context(maker)
        return self._made[name]

    def close(self) -> None:
        self._stack.close()


@contextmanager
def _lease(site: Site, kind: str) -> Iterator[str]:
    lease = site.servers.shared(kind).lease()
    yield lease.url
    lease.release()


@contextmanager
def _process(argv: List[str], **options: Any) -> "Iterator[subprocess.Popen[str]]":
    process = subprocess.Popen(argv, text=True, start_new_session=True, **options)
    try:
        yield process
    finally:
        process.terminate()
        process.communicate()


@contextmanager
def _slow(site: Site, milliseconds: str) -> Iterator[str]:
    address, _, database = site["redis"].partition("://")[2].partition("/")
    argv = [sys.executable, "-m", "benchmarks.slow", address, milliseconds]
    with _process(argv, cwd=HOME, stdout=subprocess.PIPE) as proxy:
        assert proxy.stdout is not None
        yield f"redis://127.0.0.1:{proxy.stdout.readline().strip()}/{database}"


@contextmanager
def _node(site: Site, name: str) -> Iterator[str]:
    argv = ["node", str(HERE / "children" / "http.cjs")]
    with _process(argv, stdout=subprocess.PIPE) as node:
        assert node.stdout is not None
        site.pids[name] = node.pid
        yield f"127.0.0.1:{node.stdout.readline().strip()}"


@contextmanager
def _rails(site: Site, name: str) -> Iterator[str]:
    """The example, with the work in the place of its tasks."""
    folder = site.folder / name
    shutil.copytree(HOME / "example_app" / "rails", folder)
    shutil.copytree(HERE / "rails", folder, dirs_exist_ok=True)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    env = {**os.environ, **RAILS_ENV, "PATH": path, "PYTHONPATH": str(HOME)}
    subprocess.run(["bin/setup"], cwd=folder, env=env, check=True, capture_output=True)
    yield str(folder)


@contextmanager
def _puma(site: Site, name: str) -> Iterator[str]:
    folder = site["rails"]
    [port] = free_ports(1)
    address = f"127.0.0.1:{port}"
    log = site.folder / "puma.log"
    with log.open("wb") as output:
        argv = [*PUMA, "-b", f"tcp://{address}"]
        env = {**os.environ, **RAILS_ENV}
        options: Any = {"cwd": folder, "env": env, "stdout": output, "stderr": output}
        with _process(argv, **options) as puma:
            site.pids[name] = puma.pid

            def has_booted() -> bool:
                assert puma.poll() is None, log.read_text()
                return "Worker 1" in log.read_text()

            eventually(has_booted)
            yield address


Maker = Callable[[Site, str], ContextManager[str]]
MAKERS: Dict[str, Maker] = {
    **{"redis": _lease, "rabbitmq": _lease, "slow": _slow},
    **{"node": _node, "puma": _puma, "rails": _rails},
}

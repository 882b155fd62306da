"""The example applications that are no Rails, set up once, and workers of them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from localprocess import LocalProcess
from workers import Worker, WorkerFactory, eventually

HOME = Path(__file__).parent.parent

#: What a child of each looks like among processes.
CHILDREN = {"node": r"worker\.mjs", "php": "linepool:work", "go": "bin/linepool"}
#: Its web server, for the shop's users.
WEB = {
    "node": ["node", "server.mjs"],
    "php": ["php", "-S", "127.0.0.1:0", "-t", "public", "public/index.php"],
    "go": ["bin/web"],
}
ENV = {"APP_ENV": "prod"}

SETTINGS = """
import json, shop
changed = shop.app.conf.changes
ours = {k: changed[k] for k in changed if k.startswith(("linepool_", "task_"))}
print(json.dumps(ours))
"""


@dataclass(frozen=True)
class Shop:
    """The application of a language, with a database of the test's own."""

    language: str
    folder: Path
    #: Of its ``shop.py``.
    settings: dict[str, Any]
    database: Path

    @contextmanager
    def web(self) -> Iterator[Callable[[str], Any]]:
        """Its web server; what that answers to a GET of a path, parsed."""
        log = self.database.parent / "web.log"
        env = {**os.environ, **ENV, "DATABASE": str(self.database), "PORT": "0"}
        server = LocalProcess(WEB[self.language], log=log, env=env, cwd=self.folder)
        try:
            said = eventually(
                lambda: re.search(r"http://[\d.]+:\d+", server.all_logs())
            )

            def get(path: str) -> Any:
                with urllib.request.urlopen(said[0] + path, timeout=60) as response:
                    return json.load(response)

            yield get
        finally:
            server.stop()

    def children(self, worker: Worker) -> set[int]:
        return {child.pid for child in worker.children(CHILDREN[self.language])}


def run(folder: Path, *argv: str) -> str:
    """Run a command of the app to its end; what it says on stdout."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        argv,
        cwd=folder,
        env={**os.environ, "PATH": path, "PYTHONPATH": str(HOME), **ENV},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


@pytest.fixture(scope="session")
def set_up(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Shop]:
    """The app of a language as ``bin/setup`` leaves it."""
    shops: dict[str, Shop] = {}

    def set_up(language: str) -> Shop:
        if language not in shops:
            folder = tmp_path_factory.mktemp(language) / "shop"
            shutil.copytree(HOME / "example_app" / language, folder)
            run(folder, "bin/setup")
            settings = json.loads(run(folder, sys.executable, "-c", SETTINGS))
            shops[language] = Shop(language, folder, settings, folder / "shop.db")
        return shops[language]

    return set_up


@pytest.fixture(params=CHILDREN)
def language(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def shop(set_up: Callable[[str], Shop], language: str, tmp_path: Path) -> Shop:
    template = set_up(language)
    database = tmp_path / "shop.db"
    if template.database.exists():
        shutil.copy(template.database, database)
    return Shop(language, template.folder, template.settings, database)


@pytest.fixture
def start_shop(shop: Shop, start_worker: WorkerFactory) -> Callable[..., Worker]:
    """Starts a real worker whose children are the app."""

    def start(conf: Any = None, env: Any = None, children: int = 1) -> Worker:
        own = {"linepool_cwd": str(shop.folder), "linepool_handshake": "required"}
        return start_worker(
            conf={**shop.settings, **own, **(conf or {})},
            env={**ENV, "DATABASE": str(shop.database), **(env or {})},
            args=("-c", str(children)),
        )

    return start

"""The Rails app of example_app/rails in a folder of its own, and workers of it."""

from __future__ import annotations

import csv
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from workers import Worker, WorkerFactory

HOME = Path(__file__).parent.parent
ENV = {"RAILS_ENV": "production", "SECRET_KEY_BASE": "none", "RUBYOPT": "-W0"}


class RailsApp:
    """A copy of the app, with its own database."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = dict(ENV)

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def append(self, name: str, text: str) -> None:
        with (self.folder / name).open("a") as file:
            file.write(text)

    def run(self, *argv: str, **env: str) -> str:
        """Run a command of the app to its end; what it says on stdout."""
        done = subprocess.run(
            argv,
            cwd=self.folder,
            env={**os.environ, **self.env, **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            timeout=100,
        )
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout

    def database(self, env: str = "") -> Path:
        return self.folder / "db" / f"{env or self.env['RAILS_ENV']}.sqlite3"

    def rows(self, sql: str, env: str = "") -> list[tuple[str, ...]]:
        """What the database says, each value as text."""
        if url := self.env.get("DATABASE_URL"):
            said = self.run("psql", "--csv", "--tuples-only", "--command", sql, url)
            return [tuple(row) for row in csv.reader(said.splitlines())]
        with closing(sqlite3.connect(self.database(env), timeout=30)) as db:
            return [tuple(map(str, row)) for row in db.execute(sql)]

    def count(self, table: str, env: str = "") -> int:
        return int(self.rows(f"select count(*) from {table}", env)[0][0])

    def runner(self, code: str, **env: str) -> str:
        return self.run("bin/rails", "runner", code, **env).strip()


@pytest.fixture(scope="session")
def rails_template(tmp_path_factory: pytest.TempPathFactory) -> RailsApp:
    """The app as it is set up once: its database is empty."""
    folder = tmp_path_factory.mktemp("rails") / "shop"
    shutil.copytree(HOME / "example_app" / "rails", folder)
    app = RailsApp(folder)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    app.run("bin/setup", PATH=path, PYTHONPATH=str(HOME))
    return app


@pytest.fixture
def rails(rails_template: RailsApp, tmp_path: Path) -> RailsApp:
    folder = tmp_path / "shop"
    shutil.copytree(rails_template.folder, folder)
    for part in (folder / "db").glob("production.sqlite3*"):
        shutil.copy(part, str(part).replace("production", "development"))
    return RailsApp(folder)


@pytest.fixture
def start_rails(rails: RailsApp, start_worker: WorkerFactory) -> Callable[..., Worker]:
    """Starts a real worker whose children are the app."""

    def start(
        broker: str = "redis",
        children: int = 1,
        threads: int = 1,
        conf: Any = None,
        **options: Any,
    ) -> Worker:
        env = {**rails.env, "RAILS_MAX_THREADS": str(threads), **options.pop("env", {})}
        settings = {
            "linepool_cwd": str(rails.folder),
            "linepool_handshake": "required",
            "linepool_inflight": threads,
            **(conf or {}),
        }
        options.setdefault("command", ["bin/linepool"])
        options.setdefault("args", ("-c", str(children)))
        return start_worker(broker, conf=settings, env=env, **options)

    return start

"""A pool is reset when its code changes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from workers import eventually

from celery_linepool.watch import Watch

pytestmark = pytest.mark.newest_celery

CHILD = """
require "json"
STDOUT.sync = true
NUMBER = %d
# A reset waits for it, however slow the machine is.
puts JSON.generate(op: "hello", protocol: 2, tasks: ["number"])
STDIN.each_line do |line|
  puts JSON.generate(id: JSON.parse(line)["id"], status: "ok", result: NUMBER)
end
"""


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """A folder of code with something in it that is none."""
    for name in ("app/a.rb", "app/deep/b.rb", "app/.a.rb.swp", "log/dev.log", "[x].rb"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path


def write(path: Path) -> None:
    """Change it as seen by any clock, however coarse."""
    path.write_text(path.read_text() + "!" if path.exists() else "new")


@pytest.mark.parametrize(
    "pattern, seen, unseen",
    [
        ("app", "app/deep/b.rb", "app/.a.rb.swp"),
        ("app", "app/deep/new.rb", "log/dev.log"),
        ("app/*.rb", "app/a.rb", "app/deep/b.rb"),
        ("**/*.rb", "app/deep/b.rb", "log/dev.log"),
        ("app/a.rb", "app/a.rb", "app/deep/b.rb"),
        ("app/.a.rb.swp", "app/.a.rb.swp", "app/a.rb"),
        ("tmp/restart", "tmp/restart", "app/a.rb"),
        ("[[]x].rb", "[x].rb", "x.rb"),
    ],
)
def test_what_a_pattern_covers(
    code: Path, pattern: str, seen: str, unseen: str
) -> None:
    (code / "tmp").mkdir()
    watch = Watch([pattern], str(code))
    write(code / unseen)
    assert [watch.changed(), watch.changed()] == [None, None]
    write(code / seen)
    assert [watch.changed(), watch.changed()] == [None, str(code / seen)]
    assert watch.changed() is None
    (code / seen).unlink()
    assert [watch.changed(), watch.changed()] == [None, str(code / seen)]
    # A touch is a change, too.
    write(code / seen)
    assert [watch.changed(), watch.changed()] == [None, str(code / seen)]
    os.utime(code / seen, (1, 1))
    assert [watch.changed(), watch.changed()] == [None, str(code / seen)]


def test_it_waits_until_all_are_left_alone(code: Path) -> None:
    watch = Watch(["app"], str(code))
    for name in ("a.rb", "deep/b.rb", "c.rb"):
        write(code / "app" / name)
        assert watch.changed() is None
    assert watch.changed() == str(code / "app" / "c.rb")


def test_new_code_is_served_at_once(start_worker, tmp_path):
    """Every save is seen, also after one that does not boot."""
    app = tmp_path / "shop" / "app"
    app.mkdir(parents=True)
    script = app / "child.rb"
    script.write_text(CHILD % 1)
    conf = {"linepool_cwd": str(app.parent), "linepool_watch": ["app"]}
    worker = start_worker(command=["ruby", "app/child.rb"], args=("-c", "1"), conf=conf)
    assert worker.call("number") == 1
    script.write_text("raise 'half a thought'")
    worker.wait_for_log(r"was not reset, its children stay: .*\n?.*half a thought")
    assert worker.call("number") == 1
    script.write_text(CHILD % 2)
    eventually(lambda: worker.call("number") == 2)
    assert f"is being reset: '{script}' has changed" in worker.log

"""What the project is built from and tested with: the same today as tomorrow."""

from __future__ import annotations

import configparser
import hashlib
import os
import re
import shutil
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from loopback import BEYOND

pytestmark = pytest.mark.newest_celery

ROOT = Path(__file__).resolve().parents[1]
CONSTRAINTS = sorted((ROOT / "constraints").glob("*.txt"))

#: Some time in 2020. Without it the wheel says when each file was written.
EPOCH = "1600000000"


# --- the wheel ------------------------------------------------------------------------


def wheel_from(folder: Path) -> Path:
    """Built in a copy of the sources, with nothing but what git or an sdist has."""
    source = folder / "source"
    shutil.copytree(ROOT / "celery_linepool", source / "celery_linepool", ignore=CACHES)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, source)
    for path in source.rglob("*"):
        os.utime(path)  # now, as after a checkout
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"),
            *("--disable-pip-version-check", "--wheel-dir", str(folder), str(source)),
        ],
        env={**os.environ, "SOURCE_DATE_EPOCH": EPOCH, "TMPDIR": str(folder)},
        check=True,
    )
    [wheel] = folder.glob("*.whl")
    return wheel


CACHES = shutil.ignore_patterns("__pycache__", "*.egg-info")


@pytest.mark.timeout(300)
def test_two_builds_are_one_wheel(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "somewhere" / "else"
    wheels = []
    for folder in (here, there):
        folder.mkdir(parents=True)
        wheels.append(wheel_from(folder))
    one, other = (zipfile.ZipFile(wheel) for wheel in wheels)
    with one, other:
        assert {i.filename: i.date_time for i in one.infolist()} == {
            i.filename: i.date_time for i in other.infolist()
        }
        names = set(one.namelist())
    assert {"celery_linepool/pool.py", "celery_linepool/sdk/linepool.rb"} <= names
    first, second = (hashlib.sha256(wheel.read_bytes()).digest() for wheel in wheels)
    assert first == second


# --- what is pinned -------------------------------------------------------------------


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pinned(path: Path) -> dict[str, str]:
    lines = path.read_text().splitlines()
    return {
        canonical(name): version for name, version in (li.split("==") for li in lines)
    }


def wanted(extra: str) -> set[str]:
    """The names in setup.cfg: what the package needs, and what an extra brings."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    extras = config["options.extras_require"]
    lines = f"{config['options']['install_requires']}\n{extras[extra]}".splitlines()
    names = (re.match(r"[\w.-]+", line) for line in lines if not line.startswith("#"))
    return {canonical(match[0]) for match in names if match}


@pytest.mark.parametrize("path", CONSTRAINTS, ids=lambda path: path.stem)
def test_all_that_a_job_installs_is_pinned(path: Path) -> None:
    versions = pinned(path)
    if path.stem != "fuzz":
        extra = path.stem if path.stem in ("lint", "docs") else "test"
        assert wanted(extra) <= set(versions), "run constraints/update"
    # A build of one machine cannot be had elsewhere.
    assert [v for v in versions.values() if not re.fullmatch(r"[0-9][\w.]*", v)] == []


def test_the_jobs_of_ci_are_those_that_are_pinned() -> None:
    config = configparser.ConfigParser(interpolation=None)
    config.read(ROOT / "tox.ini")
    labels = dict(re.findall(r"^(\w+) = (.*)$", config["tox"]["labels"], re.MULTILINE))
    jobs = {
        *config["tox"]["env_list"].split(),
        *labels["middle"].split(", "),
        "fuzz",
    } | {"celery-suite"}
    assert jobs == {path.stem for path in CONSTRAINTS}


# --- the network ----------------------------------------------------------------------


def test_a_test_reaches_nobody_else() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        with pytest.raises(PermissionError, match="beyond this machine"):
            sock.connect(("198.51.100.1", 9))
    assert BEYOND.pop() == "198.51.100.1"
    with socket.socket() as sock, pytest.raises(ConnectionRefusedError):
        sock.connect(("127.0.0.1", 9))

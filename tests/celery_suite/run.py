"""Celery's own integration tests, run on this pool.

    python tests/celery_suite/run.py [--all] [--folder FOLDER] [MODE ...] [OPTION ...]

They are taken from the source distribution of the Celery that is installed; no copy of
them is kept. A mode says who runs the tasks of these tests:

    python   this pool, the tasks being Python tasks of the worker
    child    this pool, the plain ones of them answered by a child
    prefork  Celery's prefork, to compare with; or solo, threads

Each mode has a Redis of its own, and all run at once. Left out are slow tests and those
that docs/celery-suite.md lists for the mode; with "--all" nothing is left out. A test
that fails though it is not listed is an error.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ElementTree
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Dict

import celery

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE.parent))

from localprocess import RedisServer, Watchdog  # noqa: E402

POOLS = {"python": "celery_linepool:LinePool", "child": "celery_linepool:LinePool"}
#: Those whose tests ask a worker to do something. Redis' is the first: it wants to see
#: no subscriptions, and results of the others' leave some, on any pool.
FILES = (
    *("test_redis_backend.py", "test_tasks.py", "test_canvas.py"),
    *("test_group_chains.py", "test_inspect.py", "test_loader.py"),
)
AT_LEAST = 320

#: They wait for half a minute or more each, some of them again and again.
SLOW = {
    "test_tasks::test_revoked_by_headers_complex_canvas",
    "test_tasks::test_retry",
    "test_chord::test_disabling_flag_allow_error_cb_on_chord_header",
    "test_chord::test_enabling_flag_allow_error_cb_on_chord_header",
    "test_chord::test_flag_allow_error_cb_on_chord_header_on_upgraded_chord",
    "test_chord::test_error_propagates_from_chord",
}

#: The functions that a child serves. They use neither their request nor the app, are
#: not called as errbacks in the worker, and raise nothing whose class is asked for.
PLAIN = (
    *("identity", "add", "mul", "add_not_typed", "add_ignore_result", "tsum", "xsum"),
    *("add_with_result", "delayed_sum", "sleeping", "redis_count", "replaced_with_me"),
    "write_to_file_and_return_int",
)

#: What the unpacked tests get besides.
CONFTEST = """

@pytest.fixture(scope="session")
def celery_worker_pool():
    return {pool!r}


@pytest.fixture(scope="session")
def celery_worker_parameters():
    return {{"concurrency": 2, "shutdown_timeout": 60.0, "ping_task_timeout": 60.0}}


def pytest_collection_modifyitems(config, items):
    left_out = [i for i in items if i.nodeid.split(".py::")[-1] in {left_out!r}]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]
"""
INI = """\
[pytest]
python_classes = test_*
timeout = 180
markers =
    flaky
    timeout
"""
Found = Dict[str, str]
STUB = "from celery_linepool import ForeignTask\n"


# --- the tests ------------------------------------------------------------------------


def unpack(folder: Path) -> Path:
    """The folder of the source distribution's ``t``."""
    version = celery.__version__
    target = folder / f"celery-{version}"
    if not (target / "t").is_dir():
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        source = ["--no-binary", "celery", f"celery=={version}", "--dest", str(folder)]
        subprocess.run([*download, *source], check=True)
        with tarfile.open(folder / f"celery-{version}.tar.gz") as archive:
            archive.extractall(folder, filter="data")
    return target / "t"


def prepare(folder: Path, tests: Path, mode: str, left_out: set[str]) -> None:
    """A copy of the tests for one mode, with the pool that it says."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    # Not the whole distribution: the Celery that is tested is the installed one.
    for name in ("__init__.py", "canvas_helpers.py", "skip.py", "integration"):
        source, target = tests / name, folder / "t" / name
        target.parent.mkdir(exist_ok=True)
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, target)
    with open(folder / "t/integration/conftest.py", "a") as conftest:
        conftest.write(CONFTEST.format(pool=POOLS.get(mode, mode), left_out=left_out))
    (folder / "pytest.ini").write_text(INI)
    conf = {"linepool_command": child_of(tests)} if mode in POOLS else {}
    (folder / "integration-tests-config.json").write_text(json.dumps(conf))
    if mode == "child":
        hand_to_child(folder / "t/integration/tasks.py")


def child_of(tests: Path) -> list[str]:
    return [sys.executable, str(HERE / "child.py"), str(tests.parent), *PLAIN]


def hand_to_child(tasks: Path) -> None:
    """Make stubs of the plain tasks: their bodies never run in the worker then."""
    source = tasks.read_text()
    for name in PLAIN:
        source, count = re.subn(
            rf"^@shared_task(?:\((.*)\))?\n(?=def {name}\()",
            lambda m: f"@shared_task(base=ForeignTask, {m[1] or ''})\n",
            source,
            flags=re.MULTILINE,
        )
        if count != 1:
            sys.exit(f"FAILED: t/integration/tasks.py has no plain task {name}")
    tasks.write_text(STUB + source)


# --- a run ----------------------------------------------------------------------------


def run(folder: Path, tests: Path, mode: str, every: bool, more: list[str]) -> Found:
    """What became of each test."""
    work = folder / mode
    prepare(work, tests, mode, set() if every else SLOW | expected(mode))
    (work / "redis").mkdir()
    redis = RedisServer(work / "redis", shared=True)
    try:
        url = f"redis://127.0.0.1:{redis.port}/0"
        path = [str(work), str(ROOT / "celery_linepool/sdk")]
        env = {
            **{**os.environ, "PYTHONPATH": os.pathsep.join(path), "C_FORCE_ROOT": "1"},
            **{"TEST_BROKER": url, "TEST_BACKEND": url, "REDIS_HOST": "127.0.0.1"},
            "REDIS_PORT": str(redis.port),
        }
        with open(work / "log", "w") as log:
            command = [sys.executable, "-m", "pytest", "--junitxml=found.xml", "-ra"]
            files = [f"t/integration/{name}" for name in FILES]
            subprocess.run(
                [*command, "--reruns=2", *more, *files],
                **{"cwd": work, "env": env, "stdout": log, "stderr": log},
            )
    finally:
        redis.teardown()
    return outcomes(work / "found.xml")


def outcomes(report: Path) -> Found:
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        name = f"{case.get('classname', '').split('.')[-1]}::{case.get('name')}"
        words = [
            part.tag for part in case if part.tag in ("failure", "error", "skipped")
        ]
        found[name] = words[0] if words else "passed"
    return found


# --- what is known --------------------------------------------------------------------


def expected(mode: str) -> set[str]:
    """Tests that docs/celery-suite.md lists for a mode."""
    rows = re.findall(r"^\| `(\S+?)` \| ([\w, ]+) \|", DOC.read_text(), re.MULTILINE)
    return {test for test, modes in rows if mode in re.split(", *", modes)}


DOC = ROOT / "docs/celery-suite.md"


def judge(mode: str, found: Found, log: Path) -> list[str]:
    """The complaints about one mode, and a line of figures."""
    failed = {name for name, what in found.items() if what in ("failure", "error")}
    passed = sum(what == "passed" for what in found.values())
    known = expected(mode)
    print(
        f"{mode}: {passed} passed, {len(failed & known)} failed as listed", flush=True
    )
    for name in sorted(known & {n for n, what in found.items() if what == "passed"}):
        print(f"{mode}: {name} passed, though it is listed")
    complaints = [f"{mode}: {name} failed" for name in sorted(failed - known)]
    if passed < AT_LEAST:
        complaints.append(f"{mode}: only {passed} tests passed")
    if complaints:
        print(log.read_text())
    return complaints


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("modes", nargs="*", metavar="MODE", default=["python", "child"])
    parser.add_argument("--folder", type=Path, default=Path("celery-suite"))
    parser.add_argument("--all", action="store_true")
    known, more = parser.parse_known_args()
    folder = known.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    watchdog = Watchdog(folder)
    try:
        tests = unpack(folder)
        with ThreadPoolExecutor() as threads:
            running = [
                threads.submit(run, folder, tests, mode, known.all, more)
                for mode in known.modes
            ]
            found = [each.result() for each in running]
    finally:
        watchdog.close()
    complaints = []
    for mode, results in zip(known.modes, found):
        complaints += judge(mode, results, folder / mode / "log")
    print(*complaints, sep="\n")
    sys.exit(bool(complaints))


if __name__ == "__main__":
    main()

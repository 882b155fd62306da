"""deploy/: all is accepted, the probes tell the truth, a release loses no task."""

from __future__ import annotations

import configparser
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from celery import Celery
from celery.bin.base import CLIContext
from celery.bin.celery import celery
from workers import eventually

from celery_linepool.settings import PoolSettings

pytestmark = pytest.mark.newest_celery

pytest_plugins = ["rails_app"]

HOME = Path(__file__).parent.parent
DEPLOY = HOME / "deploy"
BIN = Path(sys.executable).parent
LIVES = ["ruby", str(Path(__file__).parent / "children" / "lives.rb")]
DEFAULTS = PoolSettings(name="default", command=("true",))


# --- the files ------------------------------------------------------------------------


def manifest(name):
    return yaml.safe_load((DEPLOY / name).read_text())


def container():
    return manifest("kubernetes.yaml")["spec"]["template"]["spec"]["containers"][0]


def unit():
    # A "%" is systemd's, and a name may come twice.
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str
    parser.read(DEPLOY / "linepool@.service")
    return {name: dict(parser[name]) for name in parser.sections()}


def of_systemd(line):
    """As systemd runs it, for the first unit on this host."""
    for written, meant in (("%%", "\0"), ("%i", "1"), ("%H", socket.gethostname())):
        line = line.replace(written, meant)
    return [Path(shlex.split(line)[0]).name, *shlex.split(line.replace("\0", "%"))[1:]]


def of_shell(line, **env):
    """The words that a shell makes of it."""
    words = subprocess.run(
        ["sh", "-c", f"printf '%s\\n' {line}"],
        env={"PATH": os.environ["PATH"], **env},
        check=True,
        capture_output=True,
        text=True,
    )
    return words.stdout.splitlines()


def command_lines():
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    yield "Dockerfile", json.loads(re.findall("^CMD (.*)", dockerfile, re.M)[0])
    pod = container()
    yield "kubernetes.yaml args", pod["args"]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        shell, option, line = pod[probe]["exec"]["command"]
        assert (shell, option) == ("sh", "-c")
        yield f"kubernetes.yaml {probe}", of_shell(line, HOSTNAME="pod-1")
    service = unit()["Service"]
    yield "linepool@.service ExecStart", of_systemd(service["ExecStart"])
    yield "linepool@.service ExecReload", of_systemd(service["ExecReload"])
    processes = yaml.safe_load((DEPLOY / "Procfile").read_text())
    yield "Procfile", of_shell(processes["worker"])
    script = (DEPLOY / "rolling.sh").read_text()
    [line] = re.findall(r"\$\{CELERY:-(.*?)\} (.*) \|\|", script)
    yield "rolling.sh", of_shell(" ".join(line).replace('"$@"', "-d a@b"))
    page = (HOME / "docs" / "deploy.md").read_text() + (
        HOME / "docs" / "operations.md"
    ).read_text()
    for line in re.findall(r"`(celery [^`]*)`", page):
        # In sentences the app may be left out.
        line = " ".join(line.split()).replace("PID", "1")
        yield f"`{line}`", of_shell(line, HOSTNAME="pod-1")


def words_of(context):
    """The name of a subcommand: click keeps it apart, and under two names."""
    kept = vars(context)
    return kept.get("_protected_args") or kept.get("protected_args", [])


@pytest.fixture
def app_module(monkeypatch):
    """The module that the files mean by "-A app"."""
    module = ModuleType("app")
    module.app = Celery("app", set_as_current=False)
    monkeypatch.setitem(sys.modules, "app", module)
    yield module.app
    module.app.close()


@pytest.mark.parametrize(
    "argv", [pytest.param(argv, id=name) for name, argv in command_lines()]
)
def test_each_command_line_is_one_of_celerys(argv, app_module):
    assert argv[0] == "celery"
    obj = CLIContext(app=app_module, no_color=True, workdir=None)
    command, rest = celery, list(argv[1:])
    context = command.make_context("celery", rest, obj=obj)
    while hasattr(command, "resolve_command"):
        name, command, rest = command.resolve_command(
            context, [*words_of(context), *context.args]
        )
        assert command is not None
        context = command.make_context(name, list(rest), parent=context)
    if name == "worker":
        assert context.params["pool"].__name__ == "LinePool"
        assert context.params["concurrency"] == 4


def test_a_worker_has_time_to_finish():
    longest = DEFAULTS.timeout + DEFAULTS.stop_timeout
    pod = manifest("kubernetes.yaml")["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] > longest
    assert int(unit()["Service"]["TimeoutStopSec"]) > longest
    assert unit()["Service"]["KillMode"] == "mixed"


@pytest.mark.parametrize("broker", ["redis", "rabbitmq"])
def test_keda_scales_that_deployment_by_celerys_queue(broker):
    deployment = manifest("kubernetes.yaml")
    scaled = manifest(f"keda-{broker}.yaml")["spec"]
    assert scaled["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    [trigger] = scaled["triggers"]
    assert trigger["type"] == broker
    names = {"redis": "listName", "rabbitmq": "queueName"}
    assert trigger["metadata"][names[broker]] == "celery"


def test_the_unit_is_one_for_systemd(tmp_path):
    text = (DEPLOY / "linepool@.service").read_text()
    # It looks whether the program is there.
    path = tmp_path / "linepool@.service"
    path.write_text(text.replace("/srv/shop/venv/bin/celery", "/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / "linepool@1.service")],
        capture_output=True,
        text=True,
    )
    assert "linepool@" not in done.stderr, done.stderr


def test_the_steps_of_the_dockerfile():
    """There is no engine here to build it with: its lines, and what they rest on."""
    text = (DEPLOY / "Dockerfile").read_text()
    joined = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", text, flags=re.M))
    steps = [line.split(maxsplit=1) for line in joined.splitlines() if line]
    kinds = [kind for kind, _ in steps]
    assert kinds[0] == "FROM" and kinds[-2:] == ["ENTRYPOINT", "CMD"]
    assert kinds.index("USER") > max(n for n, k in enumerate(kinds) if k == "RUN")
    for kind, line in steps:
        if kind == "RUN":
            subprocess.run(["sh", "-n", "-c", line], check=True)
    # What is started is installed: tini by Debian, celery where PATH begins.
    [installed] = [line for _, line in steps if "apt-get install" in line]
    [entry] = [json.loads(line) for kind, line in steps if kind == "ENTRYPOINT"]
    assert entry == ["tini", "--"] and "tini" in installed.split()
    [environment] = [line for kind, line in steps if kind == "ENV"]
    [home] = re.findall(r"python3 -m venv (\S+)", joined)
    assert environment.startswith(f"PATH={home}/bin:")
    # And what pip is asked for exists.
    [extras] = re.findall(r'"celery-linepool\[(.*?)\]"', joined)
    setup = configparser.ConfigParser()
    setup.read(HOME / "setup.cfg")
    assert set(extras.split(",")) <= set(setup["options.extras_require"])


# --- the probes -----------------------------------------------------------------------


def test_the_probes_of_kubernetes(start_worker, start_beside, tmp_path):
    """Its own command line, in an application of the test."""
    script = tmp_path / "child.rb"
    script.write_text("raise 'not yet'")
    conf = {"linepool_wait_for_boot": True, "task_default_queue": "celery"}
    project = start_worker.project(command=["ruby", str(script)], conf=conf)
    (project.folder / "app.py").write_text("from proj import app")
    env = {
        "PATH": os.pathsep.join([str(BIN), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join([str(project.folder), *sys.path]),
        "HOSTNAME": socket.gethostname(),
        "C_FORCE_ROOT": "1",
    }
    pod = container()
    argv = [str(BIN / pod["args"][0]), *pod["args"][1:]]
    worker = start_beside(*argv, env=env, name="pod")

    def probe(kind):
        command = pod[kind]["exec"]["command"]
        return subprocess.run(
            command, env={**os.environ, **env}, capture_output=True
        ).returncode

    eventually(lambda: "trying again" in worker.all_logs())
    # It asks what the liveness probe asks.
    assert pod["livenessProbe"]["exec"] == pod["startupProbe"]["exec"]
    eventually(lambda: probe("livenessProbe") == 0)
    assert probe("readinessProbe") == 1
    shutil.copy(LIVES[1], script)
    eventually(lambda: probe("readinessProbe") == 0)
    worker.kill("SIGTERM")
    assert worker.wait(60) == 0


# --- a new release --------------------------------------------------------------------

TASK = "\nLinepool.task('release.number') { |n| sleep 0.01; [n, %d] }\n"


class Load:
    """Someone who sends tasks all the time."""

    def __init__(self, worker):
        self.worker = worker
        self.sent = []

    def send(self):
        self.sent.append(self.worker.send("release.number", len(self.sent)))

    def during(self, process):
        """Sends until the process has ended; its exit code and what it said."""
        while process.poll() is None:
            self.send()
            time.sleep(0.03)
        output, _ = process.communicate()
        return process.returncode, output

    def releases(self):
        """Of every task, in the order of sending: who has run it."""
        results = [self.worker.result(task) for task in self.sent]
        assert [number for number, _ in results] == list(range(len(results)))
        return [release for _, release in results]


@pytest.fixture
def releases(rails, start_rails, tmp_path):
    """A worker of the first of three releases, and the place that they are in."""
    for number in (1, 2, 3):
        folder = tmp_path / "releases" / str(number)
        shutil.copytree(rails.folder, folder, symlinks=True)
        with (folder / "config" / "linepool.rb").open("a") as file:
            file.write(TASK % number if number < 3 else "raise 'a broken release'")
    current = tmp_path / "current"
    current.symlink_to(tmp_path / "releases" / "1")
    return current, start_rails(children=2, conf={"linepool_cwd": str(current)})


def roll(releases, number):
    current, worker = releases
    path = os.pathsep.join([str(worker.project.folder), *sys.path])
    return subprocess.Popen(
        [DEPLOY / "rolling.sh", current.parent / "releases" / str(number), current]
        + ["-d", worker.nodename, "-t", "30"],
        env={
            **os.environ,
            "CELERY": f"{sys.executable} -m celery -A proj",
            "PYTHONPATH": path,
            "C_FORCE_ROOT": "1",
            "WAIT": "100",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_rolling_release_loses_no_task(releases, start_rails):
    current, worker = releases
    load = Load(worker)

    # One that is broken is not taken.
    code, output = load.during(roll(releases, 3))
    assert (code, "a broken release" in output) == (1, True), output
    assert current.resolve().name == "1"
    assert set(load.releases()) == {1}

    code, output = load.during(roll(releases, 2))
    assert code == 0, output
    assert current.resolve().name == "2"
    rolled = len(load.sent)

    # A new worker beside the old, which ends then: as a rollout of Kubernetes does.
    conf = {"linepool_cwd": str(current)}
    start_rails(children=1, conf=conf, project=worker.project)
    for _ in range(60):
        load.send()
    assert worker.stop(signal.SIGTERM) == 0

    found = load.releases()
    assert set(found[:rolled]) == {1, 2}
    assert set(found[rolled:]) == {2}

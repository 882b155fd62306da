"""Pages of the documentation that are followed word for word."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from localprocess import LocalProcess
from workers import eventually

HOME = Path(__file__).parent.parent
BLOCK = re.compile(
    r"^(?P<before>[^\n]*)\n\n```(?P<kind>\w+)\n(?P<text>.*?)```\n"
    r"(?:\n    (?P<output>[^\n]+))?",
    re.DOTALL | re.MULTILINE,
)


class Page:
    """A page, by its sections."""

    def __init__(self, name: str) -> None:
        text = (HOME / name).read_text()
        self.sections: dict[str, str] = dict(
            re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", text, re.M | re.S)
        )

    def excerpts(self, kind: str) -> list[str]:
        """The blocks of a language that are part of something larger."""
        rest = [self.sections[n] for n in self.sections if n != "Ten minutes"]
        blocks = BLOCK.finditer("".join(rest))
        return [block["text"] for block in blocks if block["kind"] == kind]


def unindented(text: str) -> str:
    return "".join(f"{line.strip()}\n" for line in text.splitlines())


class Reader:
    """Does what a page says, in a folder, but for where Redis is."""

    def __init__(self, folder: Path, redis_url: str) -> None:
        self.folder = folder
        self._redis_url = redis_url
        self.env = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(HOME),
            "PIP_NO_INDEX": "1",
        }
        self._worker: LocalProcess | None = None
        self._watcher: LocalProcess | None = None

    def follow(self, section: str) -> int:
        """How many commands have said what the page says that they do."""
        followed = 0
        for block in BLOCK.finditer(section):
            text = block["text"].replace("redis://localhost", self._redis_url)
            if block["kind"] != "sh":
                self._write(re.findall("`([^`]+)`", block["before"])[-1], text)
            elif " worker " in text:
                self._start(text)
            elif "entr " in text:
                self._watcher = self._leave_running("watcher", text)
            else:
                said = self.run(text)
                if block["output"]:
                    assert said.splitlines()[-1] == block["output"]
                    followed += 1
        return followed

    def _write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    @property
    def log(self) -> str:
        """That of the worker."""
        assert self._worker is not None
        return self._worker.all_logs()

    def run(self, text: str) -> str:
        """What the commands say on stdout."""
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", text],
            cwd=self.folder,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            timeout=100,
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
        if entered := re.search(r"(?m)^cd (\S+)$", text):
            self.folder /= entered[1]
        return done.stdout

    def _leave_running(self, name: str, text: str) -> LocalProcess:
        log = self.folder.parent / f"{name}.log"
        log.unlink(missing_ok=True)
        argv = ["bash", "-euc", text]
        return LocalProcess(argv, log=log, env=self.env, cwd=self.folder)

    def _start(self, text: str) -> None:
        self.stop()
        # In place of the shell, so that it gets the signals.
        text = re.sub(r"(?m)^(?=celery .* worker )", "exec ", text)
        worker = self._worker = self._leave_running("worker", text)
        eventually(lambda: " ready." in worker.all_logs() or worker.status == "exited")
        assert worker.status == "running", worker.all_logs()

    def stop(self) -> None:
        if self._watcher is not None:
            with suppress(ProcessLookupError):
                # A pipe is more than one process.
                os.killpg(self._watcher.pid, signal.SIGKILL)
            self._watcher.wait(60)
            self._watcher = None
        if self._worker is not None:
            self._worker.kill("SIGTERM")
            assert self._worker.wait(60) == 0, self._worker.all_logs()
            self._worker = None

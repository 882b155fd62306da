"""A worker's end of the pipes of one child, for the tests of the helper libraries."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import threading
from collections import deque
from pathlib import Path
from typing import Any, Deque, Dict, List, Optional, Tuple

SDK = Path(__file__).parent.parent / "celery_linepool" / "sdk"

Line = Dict[str, Any]


def _pipe() -> Tuple[int, int]:
    """A pipe far from the descriptors 3 and 4."""
    low = os.pipe()
    down, up = (fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in low)
    for fd in low:
        os.close(fd)
    return down, up


class Child:
    """One child. `read` gives the next line that it says, `ask` the reply to a task."""

    def __init__(
        self, command: List[str], channel: str = "stdio", protocol: int = 2, **env: str
    ) -> None:
        env = {**os.environ, "LINEPOOL_PROTOCOL": str(protocol), "LC_ALL": "C", **env}
        if channel == "fd":
            env["LINEPOOL_CHANNEL"] = "fd"
            # Through a shell: only there do the pipes become descriptors 3 and 4.
            down, up = _pipe(), _pipe()
            redirect = f'exec "$@" 3<&{down[0]} 4>&{up[1]} {down[0]}<&- {up[1]}>&-'
            self.process = self._start(
                ["bash", "-c", redirect, "-", *command], env, (down[0], up[1])
            )
            os.close(down[0])
            os.close(up[1])
            self.input, self.output = open(down[1], "wb"), open(up[0], "rb")
        else:
            self.process = self._start(command, env)
            assert self.process.stdin and self.process.stdout
            self.input, self.output = self.process.stdin, self.process.stdout
        self.hello: Optional[Line] = self.read() if protocol >= 2 else None

    @staticmethod
    def _start(
        command: List[str], env: Dict[str, str], fds: Tuple[int, ...] = ()
    ) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL if fds else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=env,
            pass_fds=fds,
            start_new_session=True,
        )

    def send(self, line: Line) -> None:
        text = json.dumps(line, ensure_ascii=False)
        self.input.write(text.encode("utf-8", "surrogatepass") + b"\n")
        self.input.flush()

    def read(self) -> Line:
        data = self.output.readline()
        assert data.endswith(b"\n"), f"no whole line: {data[:200]!r}"
        line = json.loads(data)
        assert isinstance(line, dict)
        return line

    def request(self, task: str, *args: Any, id: str = "an-id", **kwargs: Any) -> None:
        meta = kwargs.pop("meta", {"retries": 0})
        payload = {"task": task, "args": args, "kwargs": kwargs, "meta": meta}
        self.send({"id": id, "payload": payload, "unknown": True})

    def ask(self, task: str, *args: Any, id: str = "an-id", **kwargs: Any) -> Line:
        self.request(task, *args, id=id, **kwargs)
        reply = self.read()
        assert reply.pop("id") == id
        return reply

    def signal(self, signum: int) -> None:
        self.process.send_signal(signum)

    def end(self, eof: bool = True) -> Tuple[int, bytes, str]:
        """Its exit code, what it said beyond what was read, and its stderr.

        Ends its channel first, or waits for it to end by itself.
        """
        if eof:
            self.input.close()
        assert self.process.stderr
        said: Deque[bytes] = deque()
        reader = threading.Thread(target=lambda: said.append(self.output.read()))
        reader.start()
        stderr = self.process.stderr.read().decode()
        reader.join()
        return self.process.wait(), said[0], stderr

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.input, self.output, self.process.stdout):
            if stream:
                try:
                    stream.close()
                except BrokenPipeError:
                    pass
        if self.process.stderr:
            self.process.stderr.close()

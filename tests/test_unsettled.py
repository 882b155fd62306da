"""A result backend that does not answer holds tasks back, and none is lost."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from lone_pool import script
from workers import Worker, WorkerFactory, eventually

from celery_linepool.unsettled import PER_SLOT

SLOTS = 2
TASKS = 6 * SLOTS * PER_SLOT


class Held:
    """A worker with tasks that all wait for a file."""

    def __init__(self, start_worker: WorkerFactory, folder: Path, **options: Any):
        self._go = folder / "go"
        command, args = script("waits_for_file.rb"), ("-c", str(SLOTS))
        self.worker: Worker = start_worker("rabbitmq", command, args=args, **options)
        self._results: list[Any] = []

    def send(self, **options: Any) -> None:
        result = self.worker.send("waits", None, str(self._go), **options)
        self._results.append(result)

    def let_go(self, bound: int) -> None:
        """So many tasks come to their reply, and no other one is begun."""
        self._go.touch()

        def pool() -> Any:
            return self.worker.inspect("stats")["pool"]["pools"]["default"]

        def is_calm(found: Any) -> bool:
            return {child["state"] for child in found["children"]} == {"idle"}

        def is_reached() -> bool:
            found = pool()
            return found["settling"] >= bound and is_calm(found)

        eventually(is_reached, 60)
        for _ in range(3):
            found = pool()
            assert is_calm(found) and found["waiting"]
            # Those that ran when the last of them came to its reply come to theirs.
            assert bound <= found["settling"] < bound + SLOTS
            assert found["settling"] == found["run_seconds"]["count"]

    def all_end(self) -> None:
        pids = {child.pid for child in self.worker.children("waits_for_file")}
        assert {self.worker.result(result) for result in self._results} == pids


@pytest.mark.parametrize("linked", [False, True], ids=["plain", "linked"])
def test_redis_in_batches_holds_back_later_than_threads_do(
    start_worker: WorkerFactory, tmp_path: Path, linked: bool
) -> None:
    held = Held(start_worker, tmp_path, private_backend=True)
    # Celery publishes the link in the host of the task, so that is a thread.
    link = held.worker.app.signature("waits", (None, None)) if linked else None
    for _ in range(TASKS):
        held.send(link=link)
    held.worker.backend.pause()
    held.let_go(SLOTS if linked else SLOTS * PER_SLOT)
    held.worker.backend.resume()
    held.all_end()


def test_any_other_backend_has_a_thread_for_each_slot(
    start_worker: WorkerFactory, tmp_path: Path
) -> None:
    held = Held(start_worker, tmp_path, backend="file")
    results = Path(held.worker.app.conf.result_backend.removeprefix("file://"))
    files = [results / f"celery-task-meta-{n}" for n in range(TASKS)]
    for number, file in enumerate(files):
        # Celery looks first whether there is a result, and waits for a writer.
        os.mkfifo(file)
        held.send(task_id=str(number))
    held.let_go(SLOTS)
    for file in files:
        with open(file, "wb"):
            pass  # nothing: there is no result yet
    held.all_end()

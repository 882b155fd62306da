"""Flower, as it is, in front of a worker: its API, and its pages in a real browser."""

from __future__ import annotations

import json
import os
import re
import sys
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
from browser import Browser
from localprocess import free_ports
from workers import eventually

pytestmark = pytest.mark.newest_celery

BILLS = ["ruby", str(Path(__file__).parent / "children" / "bills.rb")]


class Flower:
    """A Flower of the worker's app, asked over HTTP."""

    def __init__(self, start_beside, worker):
        self.worker = worker
        [port] = free_ports(1)
        self.url = f"http://127.0.0.1:{port}"
        start_beside(
            *(sys.executable, "-m", "celery", "-A", "proj", "flower"),
            *("--address=127.0.0.1", f"--port={port}"),
            env={
                "PYTHONPATH": os.pathsep.join([str(worker.project.folder), *sys.path]),
                "FLOWER_UNAUTHENTICATED_API": "true",
            },
            name="flower",
        )
        eventually(lambda: self.get("/api/workers") is not None)

    def get(self, path):
        """The JSON at this path; None as long as there is none."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=30) as response:
                return json.load(response)
        except urllib.error.HTTPError as exc:
            exc.close()
            return None
        except OSError:
            return None

    def pool(self):
        """The pool section of the worker, asked for now."""
        name = urllib.parse.quote(self.worker.nodename)
        found = self.get(f"/api/workers?refresh=1&workername={name}") or {}
        stats = found.get(self.worker.nodename, {}).get("stats")
        return stats and stats["pool"]

    def task(self, task_id, state):
        """What it shows of a task, once that is in this state."""
        return eventually(lambda: self._in_state(task_id, state))

    def _in_state(self, task_id, state):
        found = self.get(f"/api/task/info/{task_id}")
        return found if found and found["state"] == state else None


@pytest.fixture
def flower(start_worker, start_beside):
    worker = start_worker(command=BILLS, args=("-c", "2", "-E"))
    flower = Flower(start_beside, worker)
    # It shows events from the moment on that it listens.
    eventually(flower.pool)
    return flower


@pytest.fixture
def browser(start_beside, tmp_path):
    browser = Browser(start_beside, tmp_path)
    yield browser
    browser.close()


def declined(worker):
    result = worker.send("billing.charge", 0)
    worker.result(result, propagate=False)
    return result


def test_the_api_shows_pool_tasks_and_foreign_errors(flower):
    worker = flower.worker
    for number in (1, 2, 3):
        charged = worker.send("billing.charge", number)
        assert worker.result(charged) == {"charged": number}
    failed = declined(worker)

    pool = flower.pool()
    pids = {child.pid for child in worker.children("bills.rb")}
    assert len(pids) == 2 and set(pool["processes"]) == pids
    assert pool["max-concurrency"] == 2
    assert pool["implementation"] == "celery_linepool:LinePool"
    assert pool["pools"]["default"]["outcomes"] == {"ok": 3, "error": 1}
    assert sum(c["tasks"] for c in pool["pools"]["default"]["children"]) == 4

    shown = flower.task(charged.id, "SUCCESS")
    assert shown["name"] == "billing.charge"
    assert shown["worker"] == worker.nodename
    assert shown["result"] == "{'charged': 3}"
    shown = flower.task(failed.id, "FAILURE")
    assert "Billing::CardDeclined: no money left" in shown["exception"]
    assert "bills.rb:21:in `decline'" in shown["traceback"]
    result = flower.get(f"/api/task/result/{failed.id}")
    assert result["state"] == "FAILURE"
    assert "bills.rb:21:in `decline'" in result["traceback"]


def test_growing_from_flower_adds_a_child(flower):
    name = urllib.parse.quote(flower.worker.nodename)
    url = f"{flower.url}/api/worker/pool/grow/{name}"
    with urllib.request.urlopen(url, data=b"n=1", timeout=60) as response:
        assert response.status == 200
    eventually(lambda: len(flower.pool()["processes"]) == 3)
    assert flower.pool()["max-concurrency"] == 3


def unbroken(text):
    """A long name may be broken into lines."""
    return "".join(text.split())


def test_what_a_person_reads_in_the_browser(flower, browser):
    worker = flower.worker
    worker.call("billing.charge", 7)
    failed = declined(worker)
    flower.task(failed.id, "FAILURE")
    pool = flower.pool()

    eventually(lambda: worker.nodename in unbroken(browser.text_of(f"{flower.url}/")))
    browser.click("a[href^='/worker/']")
    eventually(lambda: "/worker/" in browser.url)
    page = browser.text_of(browser.url)
    assert worker.nodename in page
    assert re.search(r"Max concurrency\s+2\b", page)
    # Flower writes names for people.
    assert re.search(r"Implementation\s+Celery linepool:LinePool", page)
    [processes] = re.findall(r"Processes\s+([\d, ]+)", page)
    assert {int(pid) for pid in re.findall(r"\d+", processes)} == set(pool["processes"])
    assert re.search(r"'outcomes': {'ok': 1, 'error': 1}", page)
    assert re.search(rf"Worker PID\s+{worker.pid}\b", page)

    page = browser.text_of(f"{flower.url}/task/{failed.id}")
    assert "billing.charge" in page and failed.id in page and "FAILURE" in page
    assert "Billing::CardDeclined: no money left" in page
    assert "bills.rb:21:in `decline'" in page

"""What Prometheus sees of a real worker."""

from __future__ import annotations

import os
import signal
import urllib.request
from pathlib import Path

import pytest
from localprocess import free_ports
from prometheus_client.parser import text_string_to_metric_families
from workers import eventually

LIVES = ["ruby", str(Path(__file__).parent / "children" / "lives.rb")]


@pytest.fixture
def metered(start_worker):
    def start(command=LIVES, more=()):
        [port] = free_ports(1)
        conf = {"linepool_metrics": f"127.0.0.1:{port}", **dict(more)}
        worker = start_worker(command=command, args=("-c", "2"), conf=conf)
        return worker, f"http://127.0.0.1:{port}/metrics"

    return start


def scrape(url):
    """All samples by name and labels but the pool's."""
    with urllib.request.urlopen(url, timeout=30) as response:
        text = response.read().decode()
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = dict(sample.labels)
            assert labels.pop("pool") == "default"
            found[(sample.name, *labels.values())] = sample.value
    return found


def test_what_is_counted(metered):
    worker, url = metered()
    for _ in range(3):
        pid = worker.call("lives.pid")
    with pytest.raises(Exception, match="no task"):
        worker.call("lives.unknown")
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: scrape(url).get(("linepool_restarts_total", "died")) == 1)
    eventually(lambda: scrape(url)[("linepool_children", "idle")] == 2)

    found = scrape(url)
    assert found[("linepool_tasks_total", "ok")] == 3
    assert found[("linepool_tasks_total", "error")] == 1
    assert found[("linepool_children", "busy")] == 0
    assert found[("linepool_waiting_tasks",)] == 0
    assert found[("linepool_failed_boots",)] == 0
    assert found[("linepool_run_seconds_count",)] == 4
    assert found[("linepool_run_seconds_bucket", "+Inf")] == 4
    assert 0 < found[("linepool_run_seconds_sum",)] < 60
    eventually(lambda: scrape(url)[("linepool_memory_bytes",)] > 1_000_000)
    assert found[("linepool_wait_seconds_count",)] == 4


def test_a_pool_that_does_not_boot(metered, tmp_path):
    picky = ["ruby", str(Path(LIVES[1]).with_name("boots_unless.rb"))]
    (tmp_path / "broken").touch()
    worker, url = metered(
        command=[*picky, str(tmp_path / "broken")],
        more={"linepool_wait_for_boot": True},
    )
    task = worker.send("any")
    eventually(lambda: scrape(url)[("linepool_failed_boots",)] >= 2)
    eventually(lambda: scrape(url)[("linepool_next_boot_seconds",)] > 0)
    eventually(lambda: scrape(url)[("linepool_waiting_tasks",)] == 1)
    assert not task.ready()
    (tmp_path / "broken").unlink()
    assert worker.result(task)
    found = eventually(lambda: not (f := scrape(url))[("linepool_failed_boots",)] and f)
    assert found[("linepool_next_boot_seconds",)] == 0


def test_an_address_that_is_taken_stops_no_worker(metered, start_worker):
    worker, url = metered()
    address = url.split("/")[2]
    other = start_worker(command=LIVES, conf={"linepool_metrics": address})
    other.wait_for_log(f"no metrics at {address}: .*in use")
    assert other.call("lives.pid")


@pytest.mark.parametrize("address", ["9808", "localhost:", "localhost:99999", ":x"])
def test_what_is_no_address(start_worker, address):
    worker = start_worker(command=LIVES, conf={"linepool_metrics": address}, wait=False)
    assert worker.wait() != 0
    assert "linepool_metrics: must be a host and a port" in worker.log


def test_without_the_setting_nothing_listens(start_worker):
    worker = start_worker(command=LIVES)
    worker.call("lives.pid")
    assert "metrics at" not in worker.log

"""celery-exporter, as it is, beside a worker: what it counts of foreign tasks.

That is danihodovic/celery-exporter, which PyPI has as prometheus-exporter-celery.
It asks for narrow ranges of Pythons and libraries, though it runs with others, and its
module is called "src": so it is installed by itself, beside what the tests have.
"""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from localprocess import free_ports
from prometheus_client.parser import text_string_to_metric_families
from workers import eventually

pytestmark = pytest.mark.newest_celery

BILLS = ["ruby", str(Path(__file__).parent / "children" / "bills.rb")]
EXPORTER = "prometheus-exporter-celery==0.11.2"


@pytest.fixture(scope="session")
def exporter(tmp_path_factory):
    """The folder that it is installed in."""
    folder = tmp_path_factory.mktemp("exporter")
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"),
            *("--disable-pip-version-check", "--ignore-requires-python"),
            *("--target", str(folder), EXPORTER),
        ],
        check=True,
    )
    return folder


@pytest.fixture
def metrics(exporter, start_worker, start_beside):
    """A worker, and what asks an exporter beside it for its figures."""
    worker = start_worker(command=BILLS, args=("-c", "3", "-E"))
    [port] = free_ports(1)
    start_beside(
        # As its image does.
        *(sys.executable, "-c", "from src.cli import cli; cli()"),
        *("--host=127.0.0.1", f"--port={port}"),
        f"--broker-url={worker.project.conf['broker_url']}",
        env={"PYTHONPATH": os.pathsep.join([str(exporter), *sys.path])},
        name="exporter",
    )
    url = f"http://127.0.0.1:{port}/metrics"
    eventually(lambda: scrape(url))
    return worker, lambda: scrape(url)


def scrape(url):
    """Samples by name and the labels that matter here; None if nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=60) as response:
            text = response.read().decode()
    except OSError:
        return None
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            # Of a task it only knows the queue if the sender sends events, too.
            of_task = "name" in sample.labels
            names = ("name", "exception") if of_task else ("queue_name",)
            labels = [sample.labels[n] for n in names if sample.labels.get(n)]
            found[(sample.name, *labels)] = sample.value
    return found


def test_what_it_counts_of_foreign_tasks(metrics):
    worker, figures = metrics
    queue = worker.queue
    for number in (1, 2):
        worker.call("billing.charge", number)
    worker.result(worker.send("billing.charge", 0), propagate=False)

    failed = ("celery_task_failed_total", "billing.charge", "ForeignError")
    found = eventually(lambda: (now := figures()).get(failed) and now, timeout=100)
    assert found[failed] == 1
    for name, count in (("received", 3), ("started", 3), ("succeeded", 2)):
        assert found[(f"celery_task_{name}_total", "billing.charge")] == count
    assert found[("celery_task_runtime_count", "billing.charge")] == 2
    assert found[("celery_active_process_count", queue)] == 3
    assert found[("celery_active_worker_count", queue)] == 1
    assert found[("celery_queue_length", queue)] == 0
    assert found[("celery_worker_up",)] == 1

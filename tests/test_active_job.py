"""ActiveJob over Celery: Rails enqueues, Python calls, a warm child performs."""

from __future__ import annotations

import json

import pytest
from celery import signature

pytest_plugins = ["rails_app"]

brokers = pytest.mark.parametrize("broker", ["redis", "rabbitmq"])

INVOICE = {"number": "2026-1", "email": "ann@example.org", "amount_cents": 1999}
CREATE = (
    'invoice = Invoice.create!(number: "1", email: "a@example.org", amount_cents: 5);'
)


@pytest.fixture
def console(rails):
    """Runs Ruby code as in a console of the app, which is no child of a worker."""

    def run(worker, code: str, **env: str) -> str:
        env = {
            "CELERY_BROKER_URL": worker.project.conf["broker_url"],
            "CELERY_TASK_DEFAULT_QUEUE": worker.queue,
            **env,
        }
        return rails.runner(code, **env)

    return run


@brokers
def test_python_calls_a_job_by_its_name(start_rails, rails, broker):
    rails.write(
        "app/jobs/billing/describe_job.rb",
        """
        class Billing::DescribeJob < ApplicationJob
          def perform(a, b = {}, *rest, key: nil, **others)
            [a, b, rest, key, others, job_id, provider_job_id, queue_name, executions]
          end
        end
        """,
    )
    worker = start_rails(broker)
    result = worker.send(
        "Billing::DescribeJob", 1, {"x": [1.5, None]}, "é", kwargs={"key": 2, "c": 3}
    )
    job = [result.id, result.id, worker.queue, 1]
    expected = [1, {"x": [1.5, None]}, ["é"], 2, {"c": 3}, *job]
    assert worker.result(result) == expected


@brokers
def test_rails_enqueues_a_job(start_rails, console, broker):
    worker = start_rails(broker)
    id = console(worker, CREATE + "puts ChargeJob.perform_later(invoice).job_id")
    assert worker.result(worker.app.AsyncResult(id)) == 5

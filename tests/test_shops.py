"""Applications of Node, PHP and Go, each booted once, behind a real worker."""

from __future__ import annotations

import os
import signal

import pytest
from celery.exceptions import SoftTimeLimitExceeded
from workers import eventually

from celery_linepool.errors import ForeignError

pytest_plugins = ["shops", "rates"]

#: What each calls the error of an invoice that is none.
INVALID = {
    "node": "InvalidInvoice",
    "php": "App\\InvalidInvoice",
    "go": "*shop.InvalidInvoice",
}


def invoice(number, **fields):
    email = "ann@example.org"
    return {"number": str(number), "email": email, "amount_cents": 1999, **fields}


def test_invoices_are_charged_once_for_a_task(start_shop, shop, language):
    worker = start_shop()
    one, two = (worker.call("invoices.create", invoice(n)) for n in (1, 2))
    charged = {"invoice": one, "amount_cents": 1999}
    assert worker.call("invoices.charge", one, task_id="a-task") == charged
    worker.app.AsyncResult("a-task").forget()
    assert worker.call("invoices.charge", one, task_id="a-task") == charged
    assert worker.call("invoices.find", one)["charged_cents"] == 1999
    # The key is the task's.
    assert worker.call("invoices.charge", one) == charged
    assert worker.call("invoices.find", one)["charged_cents"] == 2 * 1999

    with shop.web() as get:
        assert get(f"/invoices/{one}")["charged_cents"] == 2 * 1999

    with pytest.raises(ForeignError, match="nobody is no address") as exc:
        worker.call("invoices.create", invoice(3, email="nobody"))
    assert exc.value.foreign_type == INVALID[language]

    [id_] = worker.call("invoices.collect")
    followed = worker.result(worker.app.AsyncResult(id_))
    assert followed == {"invoice": two, "amount_cents": 1999}
    assert worker.call("invoices.collect") == []


def test_an_import_reports_how_far_it_is(start_shop, tmp_path):
    worker = start_shop()
    path = tmp_path / "in.csv"
    os.mkfifo(path)
    result = worker.send("invoices.import", str(path))
    with path.open("w") as file:
        file.write("number,email,amount_cents\n")
        file.write("1,ann@example.org,100\n2,ann@example.org,200\n")
        file.flush()
        eventually(lambda: result.info == {"done": 2})
        assert result.state == "PROGRESS"
        file.write("3,ann@example.org,300\n")
    assert worker.result(result) == 3
    assert len(worker.call("invoices.collect")) == 3


def test_rates_are_throttled_asked_together_and_given_up(
    start_shop, shop, rates, language
):
    # One retry would be allowed, and it is throttled twice.
    conf = {"task_annotations": {"*": {"max_retries": 1}}}
    children = 4 if language == "php" else 1
    worker = start_shop(conf, {"RATES_URL": rates.url}, children)
    assert worker.call("rates.fetch", "USD") == 1.25
    assert rates.asked == ["/USD"] * 3
    booted = shop.children(worker)
    assert len(booted) == children

    together = [worker.send("rates.fetch", "TOGETHER") for _ in range(4)]
    assert [worker.result(r) for r in together] == [1.25] * 4

    with pytest.raises(SoftTimeLimitExceeded):
        worker.call("rates.below", "EUR", 1, soft_time_limit=1)
    # Given up, not killed.
    assert shop.children(worker) == booted
    assert worker.call("rates.below", "EUR", 2) == 1.25


def test_running_tasks_are_finished_at_a_reset_and_a_stop(
    start_shop, shop, rates, tmp_path
):
    restart = tmp_path / "restart"
    restart.touch()
    conf = {"linepool_reset_file": str(restart)}
    worker = start_shop(conf, {"RATES_URL": rates.url})
    before = shop.children(worker)
    held = worker.send("rates.fetch", "HELD")
    eventually(lambda: rates.asked == ["/HELD"])
    os.utime(restart, (1, 1))
    after = eventually(lambda: shop.children(worker) - before)
    assert worker.call("invoices.collect") == []
    assert not held.ready()
    rates.let_go.set()
    assert worker.result(held) == 1.25
    eventually(lambda: shop.children(worker) == after)

    rates.let_go.clear()
    held = worker.send("rates.fetch", "HELD-AGAIN")
    eventually(lambda: "/HELD-AGAIN" in rates.asked)
    worker.send_signal(signal.SIGTERM)
    worker.wait_for_log("Warm shutdown")
    rates.let_go.set()
    assert worker.wait() == 0
    assert worker.result(held) == 1.25

"""A real Rails app, booted once, behind a real worker."""

from __future__ import annotations

import pytest

pytest_plugins = ["rails_app"]

INVOICE = {"number": "2026-1", "email": "ann@example.org", "amount_cents": 1999}


@pytest.mark.parametrize("broker", ["redis", "rabbitmq"])
def test_an_invoice_is_charged(start_rails, rails, broker):
    worker = start_rails(broker)
    invoice = worker.call("invoices.create", INVOICE)
    assert worker.call("invoices.charge", invoice) == {
        "charge": 1,
        "amount_cents": 1999,
    }

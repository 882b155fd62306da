"""What Sentry gets of a foreign error: by its own SDK, over HTTP."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from werkzeug import Response
from workers import eventually

from celery_linepool.sentry import frames_of

BILLS = ["ruby", str(Path(__file__).parent / "children" / "bills.rb")]

APP = """
import sentry_sdk
from celery_linepool.sentry import LinePoolIntegration
from sentry_sdk.integrations.celery import CeleryIntegration

sentry_sdk.init(DSN, integrations=[CeleryIntegration(), LinePoolIntegration()])
"""


@pytest.fixture
def events(serve):
    """Its address for SDKs, and the events that came."""
    found = []

    def take(request):
        body = request.get_data()
        if request.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        # An envelope: a header, then for each item a header and what is in it.
        lines = [json.loads(line) for line in body.splitlines() if line]
        for header, item in zip(lines[1::2], lines[2::2]):
            if header["type"] == "event":
                found.append(item)
        return Response("{}", mimetype="application/json")

    return serve(take).replace("http://", "http://key@") + "/1", found


def test_a_foreign_error_has_its_class_and_its_frames(start_worker, events):
    dsn, found = events
    worker = start_worker(command=BILLS, tasks=f"DSN = {dsn!r}\n{APP}")
    task = worker.send("billing.charge", 0)
    worker.result(task, propagate=False)
    eventually(lambda: found)

    [event] = found
    [exception] = event["exception"]["values"]
    assert exception["type"] == "Billing::CardDeclined"
    assert exception["value"] == "no money left"
    assert exception["mechanism"]["type"] == "celery"
    frames = exception["stacktrace"]["frames"]
    places = [(Path(f["filename"]).name, f["lineno"], f["function"]) for f in frames]
    assert places[-2:] == [("bills.rb", 15, "charge"), ("bills.rb", 21, "decline")]
    assert all(frame["in_app"] for frame in frames)
    assert event["transaction"] == "billing.charge"
    assert event["tags"]["celery_task_id"] == task.id


def test_causes_come_first(start_worker, events):
    dsn, found = events
    worker = start_worker(command=BILLS, tasks=f"DSN = {dsn!r}\n{APP}")
    worker.result(worker.send("billing.charge", "x"), propagate=False)
    eventually(lambda: found)
    types = [value["type"] for value in found[0]["exception"]["values"]]
    assert types == ["NoMethodError", "Billing::Broken"]


@pytest.mark.parametrize(
    ("backtrace", "frames"),
    [
        pytest.param(
            [
                "/app/models/invoice.rb:18:in `charge!'",
                "/gems/activejob-7.0/lib/execution.rb:45:in 'ActiveJob::Base#perform'",
            ],
            [
                ("/app/models/invoice.rb", 18, "charge!", True),
                (
                    "/gems/activejob-7.0/lib/execution.rb",
                    45,
                    "ActiveJob::Base#perform",
                    False,
                ),
            ],
            id="ruby",
        ),
        pytest.param(
            [
                "at charge (file:///app/billing.mjs:10:9)",
                "at async Promise.all (index 0)",
                "at async /app/node_modules/pg/lib/client.js:7:11",
            ],
            [
                ("/app/billing.mjs", 10, "charge", True),
                ("/app/node_modules/pg/lib/client.js", 7, "?", False),
            ],
            id="node",
        ),
        pytest.param(
            [
                "PDOException: gone in /app/vendor/db.php:3",
                "Stack trace:",
                "#0 /app/worker.php(9): query()",
                "#1 {main}",
                "Next RuntimeException: no in /app/billing.php:12",
                "Stack trace:",
                "#0 /app/worker.php(9): Billing->charge(Object(Invoice), 7)",
                "#1 {main}",
            ],
            [
                ("/app/billing.php", 12, "?", True),
                ("/app/worker.php", 9, "Billing->charge", True),
            ],
            id="php",
        ),
        pytest.param(
            [
                "Traceback (most recent call last):",
                'File "/app/site-packages/db.py", line 3, in query',
                "ValueError: gone",
                "Traceback (most recent call last):",
                'File "/app/worker.py", line 9, in charge',
                "decline(why)",
                'File "/app/billing.py", line 12, in decline',
                "RuntimeError: no",
            ],
            [
                ("/app/billing.py", 12, "decline", True),
                ("/app/worker.py", 9, "charge", True),
            ],
            id="python",
        ),
        pytest.param(
            [
                "panic({0x4a2f20?, 0x4e1a58?})",
                "/usr/lib/go/src/runtime/panic.go:770 +0x132",
                "main.(*Billing).charge(0xc000012345, {0x1, 0x2})",
                "/app/main.go:12 +0x1d",
            ],
            [
                ("/usr/lib/go/src/runtime/panic.go", 770, "panic", False),
                ("/app/main.go", 12, "main.(*Billing).charge", True),
            ],
            id="go",
        ),
        pytest.param(
            ["at shop.Billing.charge(Billing.java:7)"],
            [("Billing.java", 7, "shop.Billing.charge", True)],
            id="java",
        ),
        pytest.param(["somewhere", "over: the", "rainbow"], [], id="none"),
    ],
)
def test_frames_of_other_languages(backtrace, frames):
    """The newest first here, as most languages write them; Sentry wants it last."""
    keys = ("filename", "lineno", "function", "in_app")
    found = [tuple(frame[key] for key in keys) for frame in frames_of(backtrace)]
    assert found[::-1] == frames

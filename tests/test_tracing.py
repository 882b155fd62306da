"""The context of a trace, as a child gets it. Real workers: test_conversation."""

from __future__ import annotations

import opentelemetry.propagate  # noqa: F401  imported, but nobody traces
import sentry_sdk  # noqa: F401  imported, but never set up
from celery.app.task import Context
from opentelemetry import trace

from celery_linepool.tracing import context_of

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_without_a_span_the_message_has_its_own() -> None:
    request = Context({"traceparent": PARENT, "sentry-trace": "a-b", "other": "x"})
    assert context_of(request) == {"traceparent": PARENT, "sentry-trace": "a-b"}


def test_what_is_no_text_is_no_trace() -> None:
    assert context_of(Context({"traceparent": 7, "baggage": None})) == {}


def test_a_span_comes_first() -> None:
    span = trace.SpanContext(1, 2, True, trace.TraceFlags(1))
    with trace.use_span(trace.NonRecordingSpan(span)):
        found = context_of(Context({"traceparent": PARENT}))
    assert found["traceparent"] == f"00-{1:032x}-{2:016x}-01"

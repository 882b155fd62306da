"""One trace from the producer through the worker into a Ruby and a Node child.

All exporters are real, and so is what they speak; the collector is a web server that
decodes it.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from google.protobuf.json_format import MessageToDict
from localprocess import need
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
)
from sdk_driver import SDK
from webserver import Respond
from werkzeug import Request, Response
from workers import eventually

pytestmark = pytest.mark.newest_celery

TRACED = Path(__file__).parent / "children" / "traced"

#: In an application of one's own. `set_up` is for producers as well.
APP = """
from celery.signals import worker_process_init
from celery_linepool import ForeignTask
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.celery import CeleryInstrumentor
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

@app.task(base=ForeignTask, name="ruby.charge")
def charge(invoice): ...

@app.task(base=ForeignTask, name="node.render")
def render(charged): ...

def set_up(service):
    provider = TracerProvider(resource=Resource.create({"service.name": service}))
    exporter = BatchSpanProcessor(OTLPSpanExporter(), schedule_delay_millis=100)
    provider.add_span_processor(exporter)
    trace.set_tracer_provider(provider)
    CeleryInstrumentor().instrument()

@worker_process_init.connect(weak=False)
def of_the_worker(**kwargs):
    set_up("worker")
"""

PRODUCER = """
from proj import charge, render, set_up, trace
set_up("shop")
with trace.get_tracer("shop").start_as_current_span("checkout"):
    found = (charge.s(7) | render.s()).delay()
print(found.get(timeout=60))
trace.get_tracer_provider().shutdown()
"""


class Span(NamedTuple):
    service: str
    name: str
    trace: str
    id: str
    parent: str


class Collector:
    """Takes OTLP over HTTP, in protobuf and in JSON, as the exporters like it."""

    def __init__(self, serve: Callable[[Respond], str]) -> None:
        self.spans: list[Span] = []
        self.url = serve(self._take)

    def _take(self, request: Request) -> Response:
        assert request.path == "/v1/traces"
        self.spans += spans_of(request.mimetype, request.get_data())
        return Response(mimetype=request.mimetype)

    def named(self, service: str, name: str) -> Span:
        """The one span of this service and name, once it has come."""
        found = eventually(lambda: [s for s in self.spans if s[:2] == (service, name)])
        assert len(found) == 1
        return found[0]


def spans_of(content_type: str, body: bytes) -> Iterator[Span]:
    if content_type == "application/json":
        exported = json.loads(body)
        hexadecimal = str
    else:
        assert content_type == "application/x-protobuf"
        exported = MessageToDict(ExportTraceServiceRequest.FromString(body))

        def hexadecimal(binary: str) -> str:
            return base64.b64decode(binary).hex()

    for resource in exported["resourceSpans"]:
        attributes = {a["key"]: a["value"] for a in resource["resource"]["attributes"]}
        service = attributes["service.name"]["stringValue"]
        for scope in resource["scopeSpans"]:
            for span in scope["spans"]:
                ids = (span["traceId"], span["spanId"], span.get("parentSpanId", ""))
                yield Span(service, span["name"], *map(hexadecimal, ids))


@pytest.fixture
def collector(serve: Callable[[Respond], str]) -> Collector:
    return Collector(serve)


@pytest.fixture
def children(tmp_path: Path) -> Path:
    """The children with their libraries, those of npm in the locked versions."""
    folder = tmp_path / "children"
    shutil.copytree(TRACED, folder)
    for name in ("linepool.rb", "linepool.cjs", "linepool.mjs"):
        shutil.copy(SDK / name, folder)
    npm = need(shutil.which("npm"), "npm", "npm")
    options = ("--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline")
    done = subprocess.run(
        [npm, "ci", *options], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_one_trace_from_the_producer_into_the_children(
    collector, children, start_worker
):
    pools = {
        "ruby": {"command": ["ruby", str(children / "ruby.rb")], "tasks": ["ruby.*"]},
        "node": {"command": ["node", str(children / "node.mjs")], "tasks": ["node.*"]},
    }
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "NO_PROXY": "127.0.0.1"}
    conf = {"linepool_pools": pools}
    worker = start_worker(args=("-c", "1"), conf=conf, tasks=APP, env=env)
    path = os.pathsep.join([str(worker.project.folder), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", PRODUCER],
        env={**os.environ, **env, "PYTHONPATH": path},
        cwd=worker.project.folder,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.stdout == "a receipt over 70\n", done.stderr

    # Each span is the child of the one before.
    way = [
        ("shop", "checkout"),
        ("shop", "apply_async/ruby.charge"),
        ("worker", "run/ruby.charge"),
        ("worker", "apply_async/node.render"),
        ("worker", "run/node.render"),
        ("renderer", "node.render"),
        ("renderer", "draw"),
    ]
    parent = ""
    spans = [collector.named(*place) for place in way]
    for span in spans:
        assert span.parent == parent, span
        parent = span.id
    in_ruby = collector.named("billing", "ruby.charge")
    assert in_ruby.parent == collector.named("worker", "run/ruby.charge").id
    assert {span.trace for span in [*spans, in_ruby]} == {spans[0].trace}
    assert len(collector.spans) == len(way) + 1

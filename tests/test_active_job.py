"""ActiveJob over Celery: Rails enqueues, Python calls, a warm child performs."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import socket
import subprocess
import threading
import urllib.request
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime, timezone

import pytest
import redis
from celery import chain
from sdk_driver import SDK
from workers import eventually

from celery_linepool.errors import ForeignError

pytestmark = pytest.mark.newest_celery

pytest_plugins = ["rails_app"]

UTC = timezone.utc
brokers = pytest.mark.parametrize("broker", ["redis", "rabbitmq"])

PYTHON = """
@app.task(name="python.add")
def add(a, b):
    return a + b

@app.task(name="python.family", bind=True)
def family(self, *args):
    return [self.request.parent_id, *args]
"""
INVOICE = {"number": "2026-1", "email": "ann@example.org", "amount_cents": 1999}
CREATE = (
    'invoice = Invoice.create!(number: "1", email: "a@example.org", amount_cents: 5);'
)

DESCRIBE = """
class Billing::DescribeJob < ApplicationJob
  def perform(a, b = {}, *rest, key: nil, **others)
    { given: [a, b, rest, key, others.transform_keys(&:inspect)],
      id: [job_id, provider_job_id], priority: priority,
      queue: [queue_name, Linepool.job.meta["queue"]],
      eta: Linepool.job.meta["eta"], locale: [I18n.locale, Time.zone.name] }
  end
end
"""
FLAKY = """
class FlakyJob < ApplicationJob
  class Busy < StandardError; end
  class Late < StandardError; end
  retry_on Busy, wait: 0.seconds, attempts: 4
  retry_on(Late, wait: 0.seconds, attempts: 2) { Rails.logger.warn("given up") }
  discard_on ArgumentError

  def perform(times, error = "FlakyJob::Busy")
    raise error.constantize, "too early" if executions <= times

    [executions, exception_executions, Linepool.job.retries]
  end
end
"""
LIMITED = """
class LimitedJob < FlakyJob
end
"""
ODD = """
class OddJob < ApplicationJob
  def perform(kind)
    { "bytes" => "\\xff".b, "text" => "\\xff", "latin" => "é".encode("ISO-8859-1"),
      "object" => Object.new, "deep" => { a: [Object.new] }, "mail" => Mail.new,
      "time" => Time.utc(2026, 1, 2), "nan" => Float::NAN, "records" => Invoice.all,
      "plain" => { a: [1, 2.5, nil, true, :b] } }.fetch(kind)
  end
end
"""
#: What Rails 8.1 does for a job with steps.
STEPS = """
class StepsJob < ApplicationJob
  def perform(path)
    return executions if executions > 1

    File.write(path, Process.pid)
    sleep 0.01 until queue_adapter.stopping?
    retry_job
  end
end
"""
PROBES = """
Linepool.task("probe.enqueue") do |job, options, *args|
  job.constantize.set(**options.symbolize_keys).perform_later(*args).job_id
end
Linepool.task("probe.mail") do |invoice_id|
  InvoiceMailer.reminder(Invoice.find(invoice_id)).deliver_later.job_id
end
Linepool.task("probe.all") do
  jobs = [ChargeJob.new(1), ChargeJob.new(2).tap { |job| job.scheduled_at = Time.now }]
  [ActiveJob::Base.queue_adapter.enqueue_all(jobs), *jobs.map(&:provider_job_id)]
end
"""


@pytest.fixture
def jobs(rails):
    """The app with jobs for tests."""
    rails.write("app/jobs/billing/describe_job.rb", DESCRIBE)
    rails.write("app/jobs/flaky_job.rb", FLAKY)
    rails.write("app/jobs/limited_job.rb", LIMITED)
    rails.write("app/jobs/odd_job.rb", ODD)
    rails.write("app/jobs/steps_job.rb", STEPS)
    rails.append("config/linepool.rb", PROBES)
    return rails


@pytest.fixture
def console(rails):
    """Runs Ruby as in a console of the app, which is no child of a worker."""

    def run(project, code: str, **env: str) -> str:
        env = {
            "CELERY_BROKER_URL": project.conf["broker_url"],
            "CELERY_TASK_DEFAULT_QUEUE": project.queue,
            **env,
        }
        return rails.runner(code, **env)

    return run


# --- jobs as tasks --------------------------------------------------------------------


@brokers
def test_python_calls_a_job_by_its_name(start_rails, jobs, broker):
    worker = start_rails(broker)
    assert "Billing::DescribeJob" in {
        name.split()[0] for name in worker.inspect("registered")
    }
    result = worker.send(
        "Billing::DescribeJob", 1, {"x": [1.5, None]}, "é", kwargs={"key": 2, "c": 3}
    )
    about = worker.result(result)
    assert about["given"] == [1, {"x": [1.5, None]}, ["é"], 2, {":c": 3}]
    assert about["id"] == [result.id, result.id]
    assert about["queue"] == [worker.queue] * 2
    assert about["locale"] == ["en", "Europe/Berlin"]
    # As Rails writes it, so may Python.
    id_ = worker.call("invoices.create", INVOICE)
    assert worker.call("ChargeJob", id_) == 1999
    assert worker.call("ChargeJob", {"_aj_globalid": f"gid://shop/Invoice/{id_}"})


@brokers
def test_a_job_is_enqueued_in_a_child_and_in_a_console(
    start_rails, jobs, console, broker
):
    queues = [f"q-{uuid.uuid4().hex[:12]}" for _ in range(2)]
    worker = start_rails(
        broker,
        args=("-c", "1", "-Q", ",".join(queues)),
        conf={"task_default_queue": queues[0]},
        tasks=PYTHON,
    )
    options = {"queue": queues[1], "priority": 3, "wait": 1}
    enqueued = worker.call(
        "probe.enqueue", "Billing::DescribeJob", options, 1, {"a": 2}
    )
    said = console(
        worker.project,
        f"""
        {CREATE}
        described = Billing::DescribeJob.set(
          queue: "{queues[1]}", priority: 3, wait_until: Time.utc(2001, 2, 3)
        )
        ids = [
          ChargeJob.perform_later(invoice).job_id,
          described.perform_later(:a, {{ "b" => 2.days }}, key: Date.new(2026)).job_id,
          described.perform_later(1, "s" => 2).job_id,
          Linepool.send_task("python.add", args: [1], kwargs: {{ b: 2 }}, expires: 900)
        ]
        puts ids.to_json
        """,
    )
    charge, described, strings, added = json.loads(said.splitlines()[-1])
    about = worker.result(worker.app.AsyncResult(enqueued))
    assert about["given"][:2] == [1, {"a": 2}]
    assert about["queue"] == [queues[1]] * 2 and about["priority"] == 3
    assert datetime.fromisoformat(about["eta"]) > datetime(2026, 1, 1, tzinfo=UTC)
    about = worker.result(worker.app.AsyncResult(described))
    assert about["given"] == ["a", {"b": 172_800}, [], "2026-01-01", {}]
    assert about["queue"] == [queues[1]] * 2 and about["priority"] == 3
    assert datetime.fromisoformat(about["eta"]) == datetime(2001, 2, 3, tzinfo=UTC)
    about = worker.result(worker.app.AsyncResult(strings))
    assert about["given"] == [1, {}, [], None, {'"s"': 2}]
    assert worker.result(worker.app.AsyncResult(charge)) == 5
    assert worker.result(worker.app.AsyncResult(added)) == 3


ROUTES = """
Rails.application.routes.draw do
  get "/charge/:invoice", to: lambda { |env|
    invoice = Invoice.find(env["action_dispatch.request.path_parameters"][:invoice])
    [200, {}, [ChargeJob.set(wait: 0.1.seconds).perform_later(invoice).job_id]]
  }
end
"""
#: The application is loaded once, and its processes are forked off.
PUMA = "workers 2\npreload_app!\nthreads 4, 4\n"


def test_a_web_server_enqueues(start_rails, start_beside, jobs):
    jobs.write("config/routes.rb", ROUTES)
    jobs.write("config/puma.rb", PUMA)
    worker = start_rails("rabbitmq")
    create = "invoices.create"
    ids = [worker.call(create, {**INVOICE, "number": n}) for n in range(8)]
    env = {
        **jobs.env,
        "CELERY_BROKER_URL": worker.project.conf["broker_url"],
        "CELERY_TASK_DEFAULT_QUEUE": worker.queue,
    }
    server = ("bin/rails", "server", "-b", "127.0.0.1", "-p", "0")
    web = start_beside("env", "-C", str(jobs.folder), *server, env=env, name="web")
    url = eventually(lambda: re.search(r"http://127.0.0.1:\d+", web.all_logs()))[0]

    def get(invoice):
        with urllib.request.urlopen(f"{url}/charge/{invoice}", timeout=60) as page:
            return page.read().decode()

    with ThreadPoolExecutor() as pool:
        charged = list(pool.map(get, ids))
    assert [worker.result(worker.app.AsyncResult(c)) for c in charged] == [1999] * 8
    assert sorted(jobs.rows("select key from charges")) == sorted((c,) for c in charged)


def test_many_are_enqueued_at_once_and_mails_later(start_rails, jobs):
    worker = start_rails()
    ids = [worker.call("invoices.create", {**INVOICE, "number": n}) for n in "12"]
    count, *sent = worker.call("probe.all")
    assert count == 2
    assert [worker.result(worker.app.AsyncResult(id_)) for id_ in sent] == [1999] * 2
    mail = worker.app.AsyncResult(worker.call("probe.mail", ids[0]))
    # A mail is no result, and no error either.
    assert worker.result(mail) is None
    assert (jobs.folder / "tmp" / "mails" / "ann@example.org").exists()


@pytest.mark.parametrize("broker", ["redis"])
def test_what_perform_returns_is_the_result_if_it_is_json(start_rails, jobs, broker):
    worker = start_rails(broker)
    for kind in ("bytes", "text", "object", "deep", "mail", "nan", "records"):
        assert (kind, worker.call("OddJob", kind)) == (kind, None)
    assert worker.call("OddJob", "latin") == "é"
    assert worker.call("OddJob", "time") == "2026-01-02T00:00:00.000Z"
    assert worker.call("OddJob", "plain") == {"a": [1, 2.5, None, True, "b"]}


# --- retry_on, discard_on, chains -----------------------------------------------------


@brokers
def test_what_is_retried_and_what_is_not(start_rails, jobs, broker):
    conf = {"task_annotations": {"LimitedJob": {"max_retries": 1}}}
    worker = start_rails(broker, conf=conf)

    def enqueue(*args):
        id_ = worker.call("probe.enqueue", "FlakyJob", {}, *args)
        return worker.app.AsyncResult(id_)

    # Sent by Rails it is sent anew, with all that ActiveJob counts; sent by Python it
    # is retried by Celery, which counts too.
    assert worker.result(enqueue(3)) == [4, {"[FlakyJob::Busy]": 3}, 0]
    assert worker.call("FlakyJob", 3) == [4, None, 3]
    for result in (enqueue(4), worker.send("FlakyJob", 4)):
        with pytest.raises(ForeignError, match="too early") as exc:
            worker.result(result)
        assert exc.value.foreign_type == "FlakyJob::Busy"
    with pytest.raises(ForeignError, match="FlakyJob::Busy: too early"):
        worker.call("LimitedJob", 3)
    # Given up by its block, and discarded: to ActiveJob both are dealt with.
    late = "FlakyJob::Late"
    for result in (enqueue(9, late), worker.send("FlakyJob", 9, late)):
        assert worker.result(result) is None
    for result in (enqueue(9, "ArgumentError"), worker.send("FlakyJob")):
        assert worker.result(result) is None
    missing = {"_aj_globalid": "gid://shop/Invoice/404"}
    assert worker.call("ChargeJob", missing) is None


@pytest.mark.parametrize("broker", ["redis"])
def test_a_job_goes_on_in_another_child(start_rails, jobs, tmp_path, broker):
    worker = start_rails(broker)
    path = tmp_path / "pid"
    job = worker.call("probe.enqueue", "StepsJob", {}, str(path))
    pid = int(eventually(lambda: path.exists() and path.read_text()))
    os.kill(pid, signal.SIGTERM)
    assert worker.result(worker.app.AsyncResult(job)) == 2


@brokers
def test_a_chain_of_python_tasks_and_jobs(start_rails, jobs, broker):
    worker = start_rails(broker, tasks=PYTHON)
    id_ = worker.call("invoices.create", INVOICE)
    task = worker.app.signature
    result = chain(
        task("python.add", (id_ - 1, 1)),
        task("ChargeJob"),
        task("python.add", (-1998,)),
        task("FlakyJob"),
        task("python.family"),
    ).apply_async()
    # It goes on behind a job that was retried, which has run twice.
    assert worker.result(result) == [result.parent.id, [2, None, 1]]


# --- the messages ---------------------------------------------------------------------

SEND = """
options = { priority: 4, eta: Time.utc(2030, 1, 2, 3, 4, 5.5r), expires: Time.utc(2031),
            time_limit: 9, headers: { "x" => "y" } }
args = [1, "é", { "k" => nil }]
Linepool.send_task("a.task", args: args, kwargs: { b: 1.5 }, **options)
"""


def sent(app, times):
    """What Celery has in its queue: the message as a consumer sees it."""
    messages = []
    with app.connection_for_read() as connection:
        queue = connection.SimpleQueue(app.amqp.queues[app.conf.task_default_queue])
        for _ in range(times):
            message = queue.get(timeout=30)
            message.ack()
            messages.append(message)
        with pytest.raises(queue.Empty):
            queue.get_nowait()
        queue.close()
    return messages


def raw(project):
    """The keys and the one message of a Redis queue, as they are stored."""
    with redis.Redis.from_url(project.conf["broker_url"]) as client:
        (key,) = [key for key in client.keys(f"{project.queue}*")]
        (message,) = client.lrange(key, 0, -1)
        client.delete(key)
    return key, json.loads(message)


def shape(value):
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    return type(value)


#: With as little of Rails as a script may load.
ALONE = """
class SomeJob < ActiveJob::Base
  self.queue_adapter = :celery_linepool
  self.logger = nil
end
job = SomeJob.perform_later("x", :y, z: 1)
puts [job.provider_job_id == job.job_id, job.queue_adapter.stopping?].inspect
"""


def test_active_job_without_rails(start_worker):
    project = start_worker.project("redis")
    said = subprocess.run(
        ["ruby", "-W0", "-r", SDK / "linepool_active_job.rb", "-e", ALONE],
        env={
            **os.environ,
            "CELERY_BROKER_URL": project.conf["broker_url"],
            "CELERY_TASK_DEFAULT_QUEUE": project.queue,
        },
        stdout=subprocess.PIPE,
        check=True,
    )
    assert said.stdout == b"[true, false]\n"
    (message,) = sent(project.app, 1)
    assert message.headers["task"] == "SomeJob"
    args, kwargs, _ = json.loads(message.body)
    assert args[0] == "x" and kwargs == {"z": 1}


def send_the_same(app):
    app.send_task(
        "a.task",
        [1, "é", {"k": None}],
        {"b": 1.5},
        priority=4,
        eta=datetime(2030, 1, 2, 3, 4, 5, 500_000, UTC),
        expires=datetime(2031, 1, 1, tzinfo=UTC),
        time_limit=9,
        headers={"x": "y"},
        ignore_result=False,
    )


@brokers
def test_a_message_is_what_celery_would_have_sent(start_worker, console, broker):
    # On RabbitMQ the queue is not there yet.
    project = start_worker.project(broker)
    console(project, SEND)
    send_the_same(project.app)
    ruby, python = sent(project.app, 2)
    assert ruby.headers.keys() == python.headers.keys()
    own = {
        "id",
        "root_id",
        "origin",
        "lang",
        "argsrepr",
        "kwargsrepr",
        "eta",
        "expires",
    }
    for name in ruby.headers.keys() - own:
        assert (name, ruby.headers[name]) == (name, python.headers[name])
    for name in ("eta", "expires"):
        times = [datetime.fromisoformat(m.headers[name]) for m in (ruby, python)]
        assert times[0] == times[1]
    assert json.loads(ruby.body) == json.loads(python.body)
    assert ruby.content_type == python.content_type
    assert ruby.content_encoding == python.content_encoding
    assert ruby.properties["correlation_id"] == ruby.headers["id"]
    for name in ("delivery_mode", "priority"):
        assert ruby.properties[name] == python.properties[name]
    for name in ("exchange", "routing_key"):
        assert ruby.delivery_info[name] == python.delivery_info[name]


def test_a_message_is_where_celery_would_have_put_it(start_worker, console):
    project = start_worker.project("redis")
    console(project, SEND)
    ruby_key, ruby = raw(project)
    send_the_same(project.app)
    python_key, python = raw(project)
    assert ruby_key == python_key
    assert ruby.keys() == python.keys()
    # Newer Celerys have RabbitMQ drop what has expired; every worker does.
    python["properties"].pop("expiration", None)
    assert ruby["properties"].keys() == python["properties"].keys()
    for message in (ruby, python):
        message["body"] = json.loads(base64.b64decode(message["body"]))
    assert shape(ruby["body"]) == shape(python["body"])


class Proxy:
    """Stands between a client and a broker, and cuts their connections."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self._ends: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._server.accept()
                far = socket.create_connection(("127.0.0.1", self._port))
                self._ends += [near, far]
                for pair in ((near, far), (far, near)):
                    thread = threading.Thread(target=self._copy, args=pair)
                    self._threads.append(thread)
                    thread.start()

    def _copy(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)

    def cut(self) -> None:
        for end in self._ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._threads[0].join()
        self.cut()
        for thread in self._threads:
            thread.join()
        for end in self._ends:
            end.close()


MANY = """
send = -> { Linepool.send_task("a.task", args: ["x" * 1000]) }
8.times.map { Thread.new { 25.times { send.call } } }.each(&:join)
2.times { Process.wait(fork { send.call; exit!(0) }) and $?.success? or raise }
send.call
File.write("sent", "")
sleep 0.01 until File.exist?("cut")
send.call
"""


@brokers
def test_threads_forks_and_lost_connections(start_worker, rails, console, broker):
    project = start_worker.project(broker)
    url = project.conf["broker_url"]
    port = int(url.rpartition(":")[2].partition("/")[0])
    proxy = Proxy(port)
    try:
        with ThreadPoolExecutor() as pool:
            through = url.replace(f":{port}", f":{proxy.port}")
            run = pool.submit(console, project, MANY, CELERY_BROKER_URL=through)
            eventually(lambda: run.done() or (rails.folder / "sent").exists())
            proxy.cut()
            rails.write("cut", "")
            run.result()
    finally:
        proxy.close()
    ids = {message.headers["id"] for message in sent(project.app, 204)}
    assert len(ids) == 204


NOBODY_THERE = """
%w[redis://127.0.0.1:1 amqp://127.0.0.1:1].each do |url|
  Linepool.client = Linepool::Client.new(url)
  job = ChargeJob.new(1)
  job.enqueue
rescue => error
  puts [error.class, job.provider_job_id].inspect
end
"""


def test_who_cannot_enqueue_is_told(rails):
    said = rails.runner(NOBODY_THERE)
    # Bunny says something, too.
    assert [line for line in said.splitlines() if line.startswith("[")] == [
        "[Redis::CannotConnectError, nil]",
        "[Bunny::TCPConnectionFailedForAllHosts, nil]",
    ]

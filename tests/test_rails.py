"""A real Rails app, booted once, behind a real worker."""

from __future__ import annotations

import os
import random
import signal
from contextlib import suppress

import psutil
import pytest
from pages import Page, Reader
from workers import eventually

from celery_linepool.errors import ForeignError

pytestmark = pytest.mark.newest_celery

pytest_plugins = ["postgres", "rails_app", "rates"]

INVOICE = {"number": "2026-1", "email": "ann@example.org", "amount_cents": 1999}


def invoice(number, **fields):
    return {**INVOICE, "number": str(number), **fields}


# --- what the shop does ---------------------------------------------------------------


@pytest.mark.parametrize("broker", ["redis", "rabbitmq"])
def test_an_invoice_is_charged_once_for_a_task(start_rails, rails, broker):
    worker = start_rails(broker)
    id_ = worker.call("invoices.create", INVOICE)
    charged = {"charge": 1, "amount_cents": 1999}
    assert worker.call("invoices.charge", id_, task_id="a-task") == charged
    worker.app.AsyncResult("a-task").forget()
    assert worker.call("invoices.charge", id_, task_id="a-task") == charged
    sums = '{"cash":1999,"receivables":-1999}'
    assert rails.run("bin/rails", "ledger:check").strip() == sums


def test_an_error_of_rails_is_the_tasks(start_rails):
    worker = start_rails()
    with pytest.raises(
        ForeignError, match="Validation failed: Email is invalid"
    ) as exc:
        worker.call("invoices.create", invoice(1, email="nobody"))
    assert exc.value.foreign_type == "ActiveRecord::RecordInvalid"
    with pytest.raises(ForeignError) as exc:
        worker.call("invoices.charge", 404)
    assert exc.value.foreign_type == "ActiveRecord::RecordNotFound"
    assert worker.call("invoices.create", INVOICE) == 1


GATE = """
Rails.application.reloader.to_prepare do
  Invoice.after_create { sleep 0.01 until number != "3" || File.exist?("let-go") }
end
"""


def test_an_import_reports_how_far_it_is(start_rails, rails):
    rails.write("config/initializers/gate.rb", GATE)
    lines = [f"{number},ann@example.org,{number}00\n" for number in (1, 2, 3, 4)]
    path = rails.write("in.csv", "number,email,amount_cents\n" + "".join(lines))
    worker = start_rails()
    result = worker.send("invoices.import", str(path))
    eventually(lambda: result.info == {"done": 2, "total": 4})
    assert result.state == "PROGRESS"
    rails.write("let-go", "")
    assert worker.result(result) == 4
    # All or nothing: the third is there already.
    rails.write("in.csv", "number,email,amount_cents\n9,ann@example.org,1\n" + lines[2])
    with pytest.raises(ForeignError, match="UNIQUE"):
        worker.call("invoices.import", str(path))
    assert rails.count("invoices") == 4


def test_the_migrations_make_the_schema(rails):
    schema = rails.folder / "db" / "schema.rb"
    before = schema.read_text()
    schema.unlink()
    rails.run("bin/rails", "db:migrate", RAILS_ENV="test")
    assert schema.read_text() == before


def test_views_are_rendered_mails_are_sent_tasks_follow(start_rails, rails):
    worker = start_rails(children=2)
    ids = [worker.call("invoices.create", invoice(n)) for n in ("<1>", "2")]
    page = worker.call("reports.unpaid")
    assert page.startswith("<!DOCTYPE html>")
    assert "<td>&lt;1&gt;</td>" in page and "19.99 EUR" in page
    assert worker.call("invoices.remind", ids[1]).endswith(".mail")
    mail = (rails.folder / "tmp" / "mails" / "ann@example.org").read_text()
    assert "Subject: Invoice 2\n" in mail.replace("\r", "")
    assert "Your invoice 2 of 19.99 EUR is still to be paid." in mail
    sent = [worker.app.AsyncResult(id_) for id_ in worker.call("invoices.collect")]
    assert [worker.result(r)["amount_cents"] for r in sent] == [1999, 1999]
    assert worker.call("invoices.collect") == []


def test_a_rate_limit_uses_up_no_retry(start_rails, rates):
    env = {"RATES_URL": rates.url}
    # One retry would be allowed, and it is throttled twice.
    conf = {"task_annotations": {"*": {"max_retries": 1}}}
    worker = start_rails(env=env, conf=conf)
    assert worker.call("rates.fetch", "USD") == 1.25
    assert rates.asked == ["/USD"] * 3


# --- what a task leaves behind --------------------------------------------------------

PROBES = """
Linepool.task("probe.seen") do |customer|
  connection = Invoice.connection
  seen = [Current.customer, connection.query_cache_enabled, connection.query_cache.size]
  Current.customer = customer
  2.times { Invoice.count }
  seen + [connection.query_cache.size]
end
Linepool.task("probe.pool") { ActiveRecord::Base.connection_pool.stat }
CAME, LEFT = Queue.new, Queue.new
Linepool.task("probe.meet") do |how_many|
  Invoice.connection
  CAME << nil
  sleep 0.001 until CAME.size == how_many
  busy = ActiveRecord::Base.connection_pool.stat[:busy]
  LEFT << nil
  sleep 0.001 until LEFT.size == how_many
  busy
end
Linepool.task("probe.rails") do
  { env: Rails.env, pid: Process.pid, time_left: deadline > Time.now,
    loaded: $LOADED_FEATURES.any? { |name| name.end_with?("app/models/rates.rb") } }
end
"""


@pytest.mark.timeout(300)
def test_a_thousand_tasks_on_four_threads_leave_nothing(start_rails, rails):
    rails.append("config/linepool.rb", PROBES)
    worker = start_rails(threads=4)
    assert set(worker.call("probe.pool")) >= {"busy", "waiting"}
    together = [worker.send("probe.meet", 4) for _ in range(4)]
    assert [worker.result(r) for r in together] == [4] * 4
    results = [worker.send("probe.seen", n) for n in range(1000)]
    # Nobody's customer, and a query cache that is on, empty, and filled by the task.
    assert [worker.result(r) for r in results] == [[None, True, 0, 1]] * 1000
    pool = worker.call("probe.pool")
    assert {name: pool[name] for name in ("size", "busy", "dead", "waiting")} == {
        "size": 4,
        "busy": 0,
        "dead": 0,
        "waiting": 0,
    }
    assert pool["connections"] <= 4


@pytest.mark.parametrize(
    ("env", "command"),
    [
        ("production", ["bin/linepool"]),
        ("development", ["bundle", "exec", "bin/linepool"]),
    ],
)
def test_rails_env_and_bundle_exec(start_rails, rails, env, command):
    rails.append("config/linepool.rb", PROBES)
    # To find its jobs, it loads everything.
    child = rails.folder / "bin" / "linepool"
    child.write_text(child.read_text().replace("Linepool.serve_jobs\n", ""))
    worker = start_rails(command=command, env={"RAILS_ENV": env, "RUBYOPT": ""})
    about = worker.call("probe.rails")
    assert about["env"] == env
    assert about["time_left"]
    # Before anybody asks for it, or not.
    assert about["loaded"] == (env == "production")
    assert (rails.folder / "log" / f"{env}.log").exists()
    worker.call("invoices.create", INVOICE)
    assert rails.count("invoices", env) == 1


def test_code_is_reloaded_in_development(start_rails, rails):
    rails.env["RAILS_ENV"] = "development"
    rails.append("config/linepool.rb", PROBES)
    worker = start_rails()
    id_ = worker.call("invoices.create", INVOICE)
    pid = worker.call("probe.rails")["pid"]
    worker.call("invoices.remind", id_)
    model = rails.folder / "app" / "models" / "invoice.rb"
    code = model.read_text()
    model.write_text(code.replace("amount_cents / 100r", "amount_cents * 7"))
    assert "13993.00 EUR" in worker.call("reports.unpaid")
    view = rails.folder / "app" / "views" / "reports" / "unpaid.html.erb"
    view.write_text("<%= @invoices.size %> unpaid")
    assert "1 unpaid" in worker.call("reports.unpaid")
    job = "class NewJob < ApplicationJob; def perform = 7; end"
    rails.write("app/jobs/new_job.rb", job)
    assert worker.call("NewJob") == 7
    assert worker.call("probe.rails")["pid"] == pid


# --- the truth in the database --------------------------------------------------------

SOAK = int(os.environ.get("LINEPOOL_SOAK", "150"))
SEED = """
rows = ARGV[0].to_i.times.map do |n|
  { number: n.to_s, email: "ann@example.org", amount_cents: n + 1,
    created_at: Time.current, updated_at: Time.current }
end
Invoice.insert_all!(rows)
"""
#: The worst moment: it is charged, and nobody knows.
DIES = """
Rails.application.reloader.to_prepare do
  Charge.after_commit do
    File.open("died-#{invoice_id}", File::CREAT | File::EXCL) if invoice_id % 50 == 0
    Process.kill(:KILL, Process.pid) if invoice_id % 50 == 0
  rescue Errno::EEXIST # it did so before
  end
end
"""


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request, rails):
    """That of the application, which it finds as every Rails does."""
    if request.param == "postgresql":
        rails.env["DATABASE_URL"] = request.getfixturevalue("postgres").url
        rails.run("bin/rails", "db:create", "db:migrate")
    return request.param


@pytest.mark.timeout(600 + SOAK // 10)
def test_every_invoice_is_charged_once_though_children_die(
    start_rails, rails, database
):
    rails.write("config/initializers/dies.rb", DIES)
    rails.run("bin/rails", "runner", SEED, str(SOAK))
    conf = {
        "task_acks_late": True,
        "task_reject_on_worker_lost": True,
        # One task may have bad luck more than once.
        "linepool_max_crashes": 1000,
        "linepool_max_boots": 3,
    }
    worker = start_rails(children=3, threads=2, conf=conf)
    results = [worker.send("invoices.charge", n + 1) for n in range(SOAK)]
    chosen = random.Random(SOAK)
    for charged in range(50, SOAK, max(50, SOAK // 100)):
        eventually(lambda: rails.count("charges") >= charged, 100, interval=0.1)
        children = eventually(lambda: worker.children("bin/linepool"))
        with suppress(psutil.NoSuchProcess):
            chosen.choice(children).send_signal(signal.SIGKILL)
    amounts = [worker.result(r, timeout=100)["amount_cents"] for r in results]
    assert amounts == list(range(1, SOAK + 1))
    assert "was killed by SIGKILL" in worker.log
    charges = rails.rows("select invoice_id, amount_cents, key from charges order by 1")
    assert charges == [(str(n), str(n), results[n - 1].id) for n in range(1, SOAK + 1)]
    sums = rails.rows("select account, sum(amount_cents) from entries group by 1")
    total = sum(range(1, SOAK + 1))
    assert sorted(sums) == [("cash", str(total)), ("receivables", str(-total))]
    assert database in rails.runner("puts Invoice.connection.adapter_name").lower()
    rails.run("bin/rails", "ledger:check")


# --- the documentation ----------------------------------------------------------------

NEW_APP = (
    "rails new shop --api --skip-bundle --skip-git --skip-bootsnap --skip-spring"
    " --skip-listen --skip-puma --skip-test"
)
#: Those of a new app that every system with Rails has, and what the page asks for.
GEMFILE = """
source "https://rubygems.org"
gem "rails"
gem "sqlite3"
gem "redis"
"""
FROM_NOTHING = "Rails, from an empty folder"


def test_the_page_about_rails(start_worker, tmp_path):
    """Word for word, but for where Redis is, from an empty folder."""
    reader = Reader(tmp_path, start_worker.project("redis").conf["broker_url"])
    reader.run(NEW_APP)
    reader.folder = tmp_path / "shop"
    (reader.folder / "Gemfile").write_text(GEMFILE)
    sections = Page("docs/rails.md").sections
    try:
        assert reader.follow(sections["Ten minutes"]) == 1
        assert reader.follow(sections["ActiveJob"]) == 2
    finally:
        reader.stop()


def test_the_readme_from_an_empty_folder(start_worker, tmp_path):
    """Word for word, but for where Redis is."""
    folder = tmp_path / "empty"
    folder.mkdir()
    reader = Reader(folder, start_worker.project("redis").conf["broker_url"])
    try:
        assert reader.follow(Page("README.md").sections[FROM_NOTHING]) == 1
    finally:
        reader.stop()

"""Applications of Node, PHP and Go, each booted once, behind a real worker."""

from __future__ import annotations

import os
import shutil
import signal

import pytest
from celery.exceptions import SoftTimeLimitExceeded
from pages import HOME, Page, Reader, unindented
from workers import eventually

from celery_linepool.errors import ForeignError

pytestmark = pytest.mark.newest_celery

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


def test_invoices_are_charged_imported_and_collected(
    start_shop, shop, language, tmp_path
):
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

    imports_a_file(worker, tmp_path / "in.csv")

    sent = [worker.app.AsyncResult(id_) for id_ in worker.call("invoices.collect")]
    followed = [worker.result(result) for result in sent]
    assert {"invoice": two, "amount_cents": 1999} in followed
    assert sorted(each["amount_cents"] for each in followed) == [100, 200, 300, 1999]
    assert worker.call("invoices.collect") == []


def imports_a_file(worker, path):
    """And says meanwhile how far it is."""
    os.mkfifo(path)
    result = worker.send("invoices.import", str(path))
    with path.open("w") as file:
        file.write("number,email,amount_cents\n")
        file.write("11,ann@example.org,100\n12,ann@example.org,200\n")
        file.flush()
        eventually(lambda: result.info == {"done": 2})
        assert result.state == "PROGRESS"
        file.write("13,ann@example.org,300\n")
    assert worker.result(result) == 3


def test_rates_are_throttled_asked_together_and_given_up(
    start_shop, shop, rates, language
):
    # One retry would be allowed, and it is throttled twice.
    conf = {"task_annotations": {"*": {"max_retries": 1}}}
    children = 4 if language == "php" else 1
    worker = start_shop(conf, {"RATES_URL": rates.url}, children)
    assert worker.call("rates.fetch", "USD") == 1.25
    assert rates.asked == ["/USD"] * 3
    eventually(lambda: len(shop.children(worker)) == children)
    booted = shop.children(worker)

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


# --- the documentation ----------------------------------------------------------------

SERVICES = """
services:
    _defaults: { autowire: true, autoconfigure: true }
    App\\: { resource: '../src/' }
"""


def existing_node_app(example, folder):
    (folder / "node_modules").symlink_to(example / "node_modules")


def existing_php_app(example, folder):
    names = ("bin/console", "config/bundles.php", "config/packages/framework.yaml")
    for name in (*names, "src/Kernel.php", "vendor/autoload.php", "composer.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(example / name, folder / name)
    (folder / "config" / "services.yaml").write_text(SERVICES)


#: What the page takes for granted: of the example, all that is not of the shop.
EXISTING = {
    "node": existing_node_app,
    "php": existing_php_app,
    "go": lambda example, folder: None,
}
CODE = {
    # The blocks of its page, its sources, and the one that greets in ten minutes.
    "node": ("js", "*.mjs", "app.mjs"),
    "php": ("php", "*.php", "src/Tasks.php"),
    "go": ("go", "*.go", "greet.go"),
}


def test_its_page_in_the_folder_of_an_app(shop, language, start_worker, tmp_path):
    """Word for word, but for where Redis is."""
    project = start_worker.project("redis", conf={"task_default_queue": "celery"})
    redis = project.app.conf.result_backend = project.conf["broker_url"]
    folder = tmp_path / "shop"
    folder.mkdir()
    EXISTING[language](shop.folder, folder)
    reader = Reader(folder, redis)
    page = Page(f"docs/{language}.md")

    def greets_otherwise():
        # Again: what is saved while entr is busy escapes it.
        source.write_text(code.replace("Hello", "Merhaba"))
        result = project.app.send_task("shop.greet", ["Cem"])
        eventually(result.ready)
        return result.result.startswith("Merhaba Cem, from ")

    try:
        assert reader.follow(page.sections["Ten minutes"]) == 2
        assert "greeting Bob" in reader.log
        reader.follow(page.sections["Development"])
        eventually((folder / "tmp" / "restart").exists)
        source = folder / CODE[language][2]
        code = source.read_text()
        eventually(greets_otherwise, interval=1)
    finally:
        reader.stop()


def test_the_code_on_its_page_is_that_of_the_example(language):
    kind, pattern, _ = CODE[language]
    example = HOME / "example_app" / language
    sources = [unindented(path.read_text()) for path in example.rglob(pattern)]
    excerpts = Page(f"docs/{language}.md").excerpts(kind)
    assert len(excerpts) >= 5
    for excerpt in excerpts:
        assert any(unindented(excerpt) in source for source in sources), excerpt

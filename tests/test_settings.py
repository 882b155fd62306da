"""Settings: what they become, and the one sentence for each that is wrong."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click
import pytest
from celery import Celery
from celery.exceptions import ImproperlyConfigured

from celery_linepool.messages import MAX_LINE
from celery_linepool.protocol import Handshake
from celery_linepool.settings import (
    CHECKS,
    PoolSettings,
    SettingError,
    buffered_broker,
    one_core,
    read,
)

GOOD = {"command": ["ruby", "worker.rb"], "tasks": ["billing.*"]}


def conf(**settings: Any) -> Any:
    app = Celery("settings", set_as_current=False)
    app.conf.update(settings)
    return app.conf


def pool(**options: Any) -> PoolSettings:
    return read(conf(linepool_pools={"rails": {**GOOD, **options}}), 4)["rails"]


def problem(**settings: Any) -> str:
    with pytest.raises(SettingError) as caught:
        read(conf(**settings), 4)
    text = str(caught.value)
    assert "\n" not in text
    return text


# --- what they become -----------------------------------------------------------------


def test_one_command_is_one_pool_for_every_task() -> None:
    pools = read(conf(linepool_command=["ruby", "worker.rb"]), 4)
    assert list(pools) == ["default"]
    default = pools["default"]
    assert default.command == ("ruby", "worker.rb")
    assert default.tasks == ("*",)
    assert default.queues == ()
    assert default.size == 4, "the worker's -c"


def test_the_defaults() -> None:
    found = pool()
    assert (found.timeout, found.stop_timeout) == (600.0, 10.0)
    assert (found.max_line, found.stderr) == (MAX_LINE, "log")
    assert (found.cwd, found.env, found.inherit_env) == (None, {}, True)
    assert (found.user, found.group, found.umask) == (None, None, None)


def test_several_pools_keep_their_order() -> None:
    pools = read(
        conf(
            linepool_pools={
                name: {"command": [name], "queues": [name]} for name in ("z", "a", "m")
            }
        ),
        2,
    )
    assert list(pools) == ["z", "a", "m"]
    assert [p.command for p in pools.values()] == [("z",), ("a",), ("m",)]


def test_an_option_for_all_pools_and_one_pools_own() -> None:
    pools = read(
        conf(
            linepool_timeout=5,
            linepool_size=3,
            linepool_pools={"a": GOOD, "b": {**GOOD, "timeout": 7.5, "size": 1}},
        ),
        8,
    )
    assert [(p.timeout, p.size) for p in pools.values()] == [(5.0, 3), (7.5, 1)]


@pytest.mark.parametrize(
    "option, value, becomes",
    [
        ("command", ("php", "a b"), ("php", "a b")),
        ("tasks", ["a.*", "b"], ("a.*", "b")),
        ("queues", ("q",), ("q",)),
        ("size", 1, 1),
        ("cwd", Path("/srv/app"), "/srv/app"),
        ("cwd", "/srv/../app/", "/app"),
        ("env", {"A": ""}, {"A": ""}),
        ("inherit_env", False, False),
        ("user", "nobody", "nobody"),
        ("user", 0, 0),
        ("group", 1000, 1000),
        ("umask", 0, 0),
        ("umask", 0o777, 0o777),
        ("timeout", 1, 1.0),
        ("stop_timeout", 0.5, 0.5),
        ("max_line", 1024, 1024),
        ("stderr", "inherit", "inherit"),
    ],
)
def test_a_good_value(option: str, value: Any, becomes: Any) -> None:
    found = getattr(pool(**{option: value}), option)
    assert found == becomes and type(found) is type(becomes)


def test_a_relative_folder_is_one_of_the_worker(
    monkeypatch: Any, tmp_path: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert pool(cwd="app").cwd == os.path.join(os.getcwd(), "app")


def test_settings_under_a_django_namespace() -> None:
    class Django:
        CELERY_LINEPOOL_COMMAND = ["ruby", "worker.rb"]
        CELERY_LINEPOOL_TIMEOUT = 7

    app = Celery("settings", set_as_current=False)
    app.config_from_object(Django, namespace="CELERY")
    found = read(app.conf, 2)["default"]
    assert (found.command, found.timeout) == (("ruby", "worker.rb"), 7.0)


def test_a_typo_under_a_django_namespace() -> None:
    class Django:
        CELERY_LINEPOOL_COMMAND = ["ruby", "worker.rb"]
        CELERY_LINEPOOL_TIMEOUTT = 7

    app = Celery("settings", set_as_current=False)
    app.config_from_object(Django, namespace="CELERY")
    with pytest.raises(SettingError, match="did you mean linepool_timeout"):
        read(app.conf, 2)


# --- what is wrong --------------------------------------------------------------------

BAD = [
    ("command", "ruby worker.rb", "['ruby', 'worker.rb']"),
    ("command", [], "empty"),
    ("command", ["ruby", ""], "non-empty"),
    ("command", ["ruby", 7], "strings"),
    ("command", ["ru\0by"], "NUL"),
    ("command", 7, "list"),
    ("command", {"ruby": 1}, "list"),
    ("tasks", "billing.*", "list"),
    ("tasks", [""], "non-empty"),
    ("queues", "render", "list"),
    ("queues", [None], "strings"),
    ("size", 0, "1 or more"),
    ("size", -1, "1 or more"),
    ("size", 2.0, "whole number"),
    ("size", "2", "whole number"),
    ("size", True, "whole number"),
    ("cwd", 7, "path"),
    ("cwd", "a\0b", "NUL"),
    ("env", ["A=1"], "dictionary"),
    ("env", {"A": 1}, "'A'"),
    ("env", {1: "A"}, "1 does not"),
    ("env", {"A=B": "1"}, "'A=B'"),
    ("env", {"A": "1\0"}, "'A'"),
    ("env", {"": "1"}, "''"),
    ("inherit_env", 1, "True or False"),
    ("inherit_env", "no", "True or False"),
    ("user", True, "name or a number"),
    ("user", ["a"], "name or a number"),
    ("user", -1, "-1"),
    ("user", "no-such-user", "no-such-user"),
    ("group", 1.5, "name or a number"),
    ("group", "no-such-group", "no-such-group"),
    ("umask", "022", "0o777"),
    ("umask", 0o1000, "0o777"),
    ("umask", -1, "0o777"),
    ("umask", True, "0o777"),
    ("timeout", 0, "above 0"),
    ("timeout", -1, "above 0"),
    ("timeout", "60", "above 0"),
    ("timeout", True, "above 0"),
    ("timeout", float("inf"), "above 0"),
    ("timeout", float("nan"), "above 0"),
    ("stop_timeout", 0, "above 0"),
    ("max_line", 0, "1 or more"),
    ("max_line", 1e6, "whole number"),
    ("inflight", 0, "1 or more"),
    ("handshake", "maybe", "'auto', 'required' or 'none'"),
    ("boot_timeout", -1, "above 0"),
    ("cancel_grace", 0, "above 0"),
    ("stdout", "loose", "'auto', 'strict' or 'log'"),
    ("channel", 3, "'stdio' or 'fd'"),
    ("stderr", "file", "'log' or 'inherit'"),
    ("stderr", True, "'log' or 'inherit'"),
    ("stderr", ["log"], "'log' or 'inherit'"),
    ("max_lifetime", 0, "above 0"),
    ("idle_timeout", "1h", "above 0"),
    ("memory_limit", 0, "1 or more"),
    ("memory_limit", "1G", "whole number"),
    ("max_crashes", 0, "1 or more"),
    ("on_poison", "drop", "'fail' or 'reject'"),
    ("soft_signal", "NOPE", "name of a signal"),
    ("dump_signal", 3, "name of a signal"),
    ("max_boots", 0, "1 or more"),
    ("wait_for_boot", 1, "True or False"),
    ("nice", 20, "-20 to 19"),
    ("nice", True, "-20 to 19"),
    ("rlimits", [1024], "dictionary"),
    ("rlimits", {"files": 1}, "'files'"),
    ("rlimits", {"nofile": "many"}, "'many'"),
    ("rlimits", {"nofile": (1, 2, 3)}, "(1, 2, 3)"),
    ("reset_file", 7, "path"),
    ("watch", "app", "list of strings"),
]


@pytest.mark.parametrize("option, value, words", BAD)
def test_a_bad_value_names_its_setting(option: str, value: Any, words: str) -> None:
    text = problem(linepool_pools={"rails": {**GOOD, option: value}})
    assert text.startswith(f"linepool_pools['rails'][{option!r}]: ")
    assert words in text


@pytest.mark.parametrize("option, value, words", BAD)
def test_a_bad_value_for_all_pools_names_its_setting(
    option: str, value: Any, words: str
) -> None:
    settings = {"linepool_command": ["x"], f"linepool_{option}": value}
    text = problem(**settings)
    assert text.startswith(f"linepool_{option}: ")
    assert words in text


def test_every_option_has_a_bad_value() -> None:
    assert {option for option, _, _ in BAD} == set(CHECKS)


@pytest.mark.parametrize(
    "settings, words",
    [
        ({}, "linepool_command: is not set"),
        ({"linepool_timeout": 5}, "linepool_command: is not set"),
        (
            {"linepool_command": ["x"], "linepool_pools": {"a": GOOD}},
            "linepool_command: cannot be set beside linepool_pools",
        ),
        ({"linepool_pools": {}}, "linepool_pools: must be a dictionary"),
        ({"linepool_pools": [GOOD]}, "linepool_pools: must be a dictionary"),
        ({"linepool_pools": {"a": ["x"]}}, "linepool_pools['a']: must be a dictionary"),
        ({"linepool_pools": {"a": {"tasks": ["*"]}}}, "linepool_pools['a']: has no"),
        (
            {"linepool_pools": {"a": {"command": ["x"], "handshake": "auto"}}},
            "['a']: serves nothing",
        ),
        (
            {"linepool_pools": {"a": {**GOOD, "sise": 2}}},
            "linepool_pools['a']['sise']: is no setting of celery-linepool; "
            "did you mean size?",
        ),
        (
            {"linepool_comand": ["x"]},
            "linepool_comand: is no setting of celery-linepool; "
            "did you mean linepool_command?",
        ),
        ({"linepool_command": ["x"], "linepool_xyzzy": 1}, "linepool_xyzzy: is no"),
    ],
)
def test_what_does_not_go_together(settings: dict[str, Any], words: str) -> None:
    assert words in problem(**settings)


def test_settings_of_others_are_theirs() -> None:
    settings = conf(linepool_command=["x"], worker_concurrency=3, my_linepool_thing=1)
    assert list(read(settings, 1)) == ["default"]


def test_a_wrong_setting_is_an_error_of_celery_and_of_the_command_line() -> None:
    error = SettingError("linepool_size", "is wrong")
    assert isinstance(error, ImproperlyConfigured)
    assert isinstance(error, click.ClickException)
    assert error.format_message() == str(error) == "linepool_size: is wrong"


# --- what they are used for -----------------------------------------------------------


@pytest.mark.parametrize(
    "glob, name, serves",
    [
        ("*", "anything.at.all", True),
        ("billing.*", "billing.charge", True),
        ("billing.*", "billing.sub.charge", True),
        ("billing.*", "billing", False),
        ("billing.*", "Billing.charge", False),
        ("billing.charge", "billing.charge", True),
        ("billing.charge", "billing_charge", False),
        ("a.?", "a.b", True),
        ("a.[bc]", "a.d", False),
    ],
)
def test_globs(glob: str, name: str, serves: bool) -> None:
    assert pool(tasks=[glob]).serves(name) is serves


def test_the_environment_of_a_child(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LINEPOOL_A", "ours")
    monkeypatch.setenv("LINEPOOL_B", "ours")
    found = pool(env={"LINEPOOL_B": "its own"}).environment()
    assert (found["LINEPOOL_A"], found["LINEPOOL_B"]) == ("ours", "its own")
    assert os.environ["LINEPOOL_B"] == "ours"
    monkeypatch.delenv("LANG", raising=False)
    found = pool(inherit_env=False, env={"X": "1"}).environment()
    names = {name for name in found if not name.startswith("LINEPOOL_")}
    assert names <= {"PATH", "HOME", "TZ", "X"}
    assert found["X"] == "1"


def test_what_a_child_is_told_of_itself() -> None:
    found = pool(max_line=1000, channel="fd").environment(slot=3, generation=2)
    told = {k: v for k, v in found.items() if k.startswith("LINEPOOL_")}
    expected = {
        "LINEPOOL_PROTOCOL": "2",
        "LINEPOOL_POOL": "rails",
        "LINEPOOL_SLOT": "3",
        "LINEPOOL_GENERATION": "2",
        "LINEPOOL_MAX_LINE": "1000",
        "LINEPOOL_CHANNEL": "fd",
    }
    assert {k: told[k] for k in expected} == expected
    assert pool(handshake="none").environment()["LINEPOOL_PROTOCOL"] == "1"


def test_children_of_a_pool_that_names_no_task_have_to_say_hello() -> None:
    found = read(conf(linepool_pools={"a": {"command": ["x"]}}), 1)
    assert found["a"].handshake is Handshake.REQUIRED


def test_what_is_faster_is_off_by_default() -> None:
    assert one_core(conf()) is False
    assert buffered_broker(conf()) is False


def test_a_core_is_any_or_one_that_there_is() -> None:
    core = max(os.sched_getaffinity(0))
    assert one_core(conf(linepool_one_core=True)) is True
    assert one_core(conf(linepool_one_core=core)) == core
    for value in (100_000, -1, "0", 1.0):
        with pytest.raises(SettingError, match=r"^linepool_one_core: must be True, Fa"):
            one_core(conf(linepool_one_core=value))


def test_the_broker_is_buffered_or_not() -> None:
    assert buffered_broker(conf(linepool_buffered_broker=True)) is True
    with pytest.raises(SettingError, match="linepool_buffered_broker: must be True or"):
        buffered_broker(conf(linepool_buffered_broker="yes"))


def test_settings_do_not_change_any_more() -> None:
    with pytest.raises(AttributeError):
        pool().size = 7  # type: ignore[misc]

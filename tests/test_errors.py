"""The texts that people read where a task failed, and back from text to fields."""

from __future__ import annotations

import json

import pytest
from celery.utils.serialization import get_pickleable_exception
from hypothesis import given
from hypothesis import strategies as st

from celery_linepool import errors
from celery_linepool.errors import Abandoned, ForeignError, LinePoolError

CASES = [
    # (arguments, headline, foreign_type, message, backtrace)
    (("out of paper",), "out of paper", None, "out of paper", []),
    (("boom", "RuntimeError"), "RuntimeError: boom", "RuntimeError", "boom", []),
    (
        ("boom", "RuntimeError", ["a.rb:1:in `x'", "b.rb:2"]),
        "RuntimeError: boom",
        "RuntimeError",
        "boom",
        ["a.rb:1:in `x'", "b.rb:2"],
    ),
    (
        ("No such file", "Errno::ENOENT"),
        "Errno::ENOENT: No such file",
        "Errno::ENOENT",
        "No such file",
        [],
    ),
    (
        ("gone", "App\\Billing\\Gone"),
        "App\\Billing\\Gone: gone",
        "App\\Billing\\Gone",
        "gone",
        [],
    ),
    (
        ("x", "*errors.errorString"),
        "*errors.errorString: x",
        "*errors.errorString",
        "x",
        [],
    ),
    (
        ("line one\nline two: of two", "Err"),
        "Err: line one\nline two: of two",
        "Err",
        "line one\nline two: of two",
        [],
    ),
    # An empty class is none, and an empty message stays one.
    (("boom", ""), "boom", None, "boom", []),
    (("", "Err"), "Err: ", "Err", "", []),
    (("no class", None, ["x.js:1"]), "no class", None, "no class", ["x.js:1"]),
]


@pytest.mark.parametrize("arguments, headline, foreign_type, message, backtrace", CASES)
def test_a_foreign_error_gives_back_what_it_was_made_of(
    arguments: tuple, headline: str, foreign_type: str, message: str, backtrace: list
) -> None:
    error = ForeignError(*arguments)
    assert error.headline == headline
    assert error.foreign_type == foreign_type
    assert error.message == message
    assert error.backtrace == backtrace


@pytest.mark.parametrize("arguments", [case[0] for case in CASES])
def test_a_foreign_error_survives_the_way_through_a_result_backend(
    arguments: tuple,
) -> None:
    error = ForeignError(*arguments)
    # Celery stores class and args, and calls the one with the others.
    again = ForeignError(*json.loads(json.dumps(error.args)))
    assert str(again) == str(error)
    assert again.foreign_type == error.foreign_type
    assert again.message == error.message
    assert again.backtrace == error.backtrace


def test_a_foreign_error_can_be_pickled() -> None:
    error = ForeignError("boom", "RuntimeError", ["a.rb:1"])
    assert get_pickleable_exception(error) is error


def test_the_repr_of_a_foreign_error_is_one_short_line() -> None:
    error = ForeignError("boom", "RuntimeError", ["a.rb:1"] * 100)
    assert repr(error) == "ForeignError('RuntimeError: boom')"


def test_the_text_of_a_foreign_error_holds_everything() -> None:
    error = ForeignError("boom", "RuntimeError", ["a.rb:1", "b.rb:2"])
    assert str(error) == (
        "RuntimeError: boom\nForeign backtrace:\n    a.rb:1\n    b.rb:2"
    )


@given(
    type_=st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,20}", fullmatch=True),
    message=st.text(st.characters(exclude_categories=["Cs"])),
)
def test_any_message_comes_back_from_under_its_class(type_: str, message: str) -> None:
    error = ForeignError(message, type_)
    assert (error.foreign_type, error.message) == (type_, message)


def test_every_error_is_a_linepool_error_but_the_one_that_no_retry_may_catch() -> None:
    found = {
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, BaseException)
    }
    assert Abandoned in found
    for error in found - {Abandoned}:
        assert issubclass(error, LinePoolError)
    # autoretry_for=(Exception,) must not see it.
    assert not issubclass(Abandoned, Exception)


def test_an_abandoned_task_says_why() -> None:
    reason = ValueError("the reason")
    assert Abandoned(reason).reason is reason

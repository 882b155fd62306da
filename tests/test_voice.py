"""What children say, on its way into the log."""

from __future__ import annotations

import logging

import pytest

from celery_linepool.voice import LEVELS, LONGEST, RATE, Voice, printable


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def voice(caplog: pytest.LogCaptureFixture, clock: Clock) -> Voice:
    caplog.set_level("DEBUG")
    return Voice("rails", 2, 7, logging.WARNING, clock)


@pytest.mark.parametrize(("name", "level"), LEVELS.items())
def test_levels_of_other_languages(
    voice: Voice, caplog: pytest.LogCaptureFixture, name: str, level: int
) -> None:
    voice.say("text", "an-id", name.upper())
    [record] = caplog.records
    assert record.levelno == level
    assert record.getMessage() == "[rails pid 7] text"
    assert vars(record)["linepool_task_id"] == "an-id"
    assert vars(record)["linepool_level"] == name.upper()
    where = [vars(record)[f"linepool_{name}"] for name in ("pool", "slot", "pid")]
    assert where == ["rails", 2, 7]


def test_a_level_that_nobody_knows_is_info(
    voice: Voice, caplog: pytest.LogCaptureFixture
) -> None:
    voice.say("text", None, "verbose")
    assert caplog.records[0].levelno == logging.INFO


def test_so_many_a_second_and_no_more(
    voice: Voice, caplog: pytest.LogCaptureFixture, clock: Clock
) -> None:
    for number in range(RATE + 3):
        voice.say(str(number), None)
    assert len(caplog.records) == RATE
    clock.now += 1
    voice.say("again", None)
    texts = [record.getMessage() for record in caplog.records[RATE:]]
    assert texts == [
        "[rails pid 7] ... 3 lines did not reach the log",
        "[rails pid 7] again",
    ]


def test_the_hint_about_noise_comes_once(
    voice: Voice, caplog: pytest.LogCaptureFixture
) -> None:
    for line in (b"one", b"two"):
        voice.noise(line, None)
    texts = [record.getMessage() for record in caplog.records]
    assert len(texts) == 3
    assert "one" in texts[0] and "linepool_channel" in texts[1] and "two" in texts[2]


def test_a_broken_filter_does_not_stop_a_child(
    voice: Voice, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(record: logging.LogRecord) -> bool:
        raise KeyError("linepool")

    logger = logging.getLogger("celery_linepool.child.rails")
    logger.addFilter(broken)
    try:
        voice.say("lost", None)
    finally:
        logger.removeFilter(broken)
    voice.close()
    assert "1 lines did not reach" in caplog.text


def test_what_is_shown_is_cut_and_cannot_steer_a_terminal() -> None:
    assert printable(b"\x1b[2J\x9b\r\n") == "\\x1b[2J\\x9b"
    assert len(printable(b"x" * (LONGEST + 5))) == LONGEST

"""Hand-over between threads: nothing is lost, and a batch costs one wake-up."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Iterator

import pytest

from celery_linepool.mailbox import Mailbox


@pytest.fixture
def mailbox() -> Iterator[Mailbox]:
    mailbox = Mailbox()
    yield mailbox
    mailbox.close()


def nothing(*args: object) -> None:
    """What the letters of a test would call."""


def wakeups(mailbox: Mailbox) -> int:
    """How often the reader was woken, without waking it."""
    try:
        return len(os.read(mailbox.fileno(), 100_000))
    except BlockingIOError:
        return 0


def is_readable(mailbox: Mailbox) -> bool:
    return bool(select.select([mailbox], [], [], 0)[0])


def test_letters_come_out_in_their_order(mailbox: Mailbox) -> None:
    for number in range(5):
        mailbox.post(nothing, number)
    assert len(mailbox) == 5
    assert [mailbox.take()[1] for _ in range(5)] == [(n,) for n in range(5)]
    with pytest.raises(IndexError):
        mailbox.take()


def test_a_batch_costs_one_wakeup(mailbox: Mailbox) -> None:
    for _ in range(1000):
        mailbox.post(nothing)
    assert wakeups(mailbox) == 1


def test_what_is_put_wakes_nobody_until_wake(mailbox: Mailbox) -> None:
    mailbox.put(nothing)
    mailbox.put(nothing)
    assert wakeups(mailbox) == 0
    mailbox.wake()
    mailbox.wake()
    assert wakeups(mailbox) == 1
    assert len(mailbox) == 2


def test_an_empty_mailbox_wakes_nobody(mailbox: Mailbox) -> None:
    mailbox.wake()
    assert wakeups(mailbox) == 0
    mailbox.post(nothing)
    assert wakeups(mailbox) == 1


def test_a_reader_that_is_awake_is_not_woken(mailbox: Mailbox) -> None:
    mailbox.armed = False
    mailbox.post(nothing)
    assert len(mailbox) == 1
    assert wakeups(mailbox) == 0


def test_each_time_the_reader_may_sleep_it_is_woken_again(mailbox: Mailbox) -> None:
    for _ in range(3):
        mailbox.armed = True
        mailbox.post(nothing)
        assert is_readable(mailbox)
        mailbox.clear_wakeup()
        assert not is_readable(mailbox)


def test_clearing_what_was_never_written_does_not_wait(mailbox: Mailbox) -> None:
    mailbox.clear_wakeup()


def test_a_pipe_full_of_wakeups_is_no_error(mailbox: Mailbox) -> None:
    while True:
        try:
            os.write(mailbox._write_fd, b"\0" * 4096)
        except BlockingIOError:
            break
    mailbox.post(nothing)
    assert is_readable(mailbox)
    mailbox.clear_wakeup()
    assert not is_readable(mailbox)


def test_its_descriptors_do_not_reach_other_programs(mailbox: Mailbox) -> None:
    assert not os.get_inheritable(mailbox.fileno())
    assert not os.get_inheritable(mailbox._write_fd)


def test_closing_gives_both_ends_back() -> None:
    before = set(os.listdir("/proc/self/fd"))
    mailbox = Mailbox()
    mailbox.close()
    assert set(os.listdir("/proc/self/fd")) == before


SENDERS = 4
LETTERS = 5000


def test_no_wakeup_is_lost_between_threads(mailbox: Mailbox) -> None:
    """The reader sleeps as often as it can; whoever is lost leaves it asleep."""
    received: list[tuple[int, int]] = []

    def send(sender: int) -> None:
        for number in range(LETTERS):
            mailbox.post(received.append, (sender, number))

    threads = [
        threading.Thread(target=send, args=(n,), daemon=True) for n in range(SENDERS)
    ]
    for thread in threads:
        thread.start()
    while len(received) < SENDERS * LETTERS:
        mailbox.armed = True
        if not mailbox:
            # Long enough for any machine: if nothing comes, a wake-up was lost.
            assert select.select([mailbox], [], [], 30)[0], "the reader sleeps on"
            mailbox.clear_wakeup()
        mailbox.armed = False
        for _ in range(len(mailbox)):
            call, args = mailbox.take()
            call(*args)
    for thread in threads:
        thread.join()
    for sender in range(SENDERS):
        assert [n for s, n in received if s == sender] == list(range(LETTERS))


def test_one_letter_at_a_time_always_wakes(mailbox: Mailbox) -> None:
    """Each letter is written only after the one before was taken."""
    taken = threading.Semaphore(1)

    def send() -> None:
        for _ in range(LETTERS):
            taken.acquire()
            mailbox.post(taken.release)

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    for _ in range(LETTERS):
        mailbox.armed = True
        # A wake-up may come late, for a letter that was taken already.
        while not mailbox:
            assert select.select([mailbox], [], [], 30)[0], "the reader sleeps on"
            mailbox.clear_wakeup()
            mailbox.armed = True
        mailbox.armed = False
        call, args = mailbox.take()
        call(*args)
    thread.join()


def test_a_letter_may_be_posted_by_a_signal_handler(mailbox: Mailbox) -> None:
    """No lock is held that the interrupted `post` would have to give back."""
    posted = 0

    class Interrupts:
        """In place of the letters: posts once more in the middle of `post`."""

        def __init__(self) -> None:
            self.letters: list[object] = []

        def append(self, letter: object) -> None:
            nonlocal posted
            self.letters.append(letter)
            if posted < 1:
                posted += 1
                mailbox.post(nothing, "inner")

    interrupts = Interrupts()
    mailbox._letters = interrupts  # type: ignore[assignment]
    mailbox.post(nothing, "outer")
    assert [args for _, args in interrupts.letters] == [("outer",), ("inner",)]
    assert wakeups(mailbox) == 1

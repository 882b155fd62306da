"""The scenarios against children with one mistake each: which of them fail."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Dict, List, Set

import pytest

from celery_linepool.kit.company import Company, Options
from celery_linepool.kit.runner import Outcome, Result, play_all
from celery_linepool.kit.scenario import Scenario
from celery_linepool.kit.scenarios import ALL

pytestmark = pytest.mark.newest_celery

CHILDREN = Path(__file__).parent / "children" / "kit"
#: It takes as long as all others together, and is the business of two children only.
LONG = "memory"

#: The file of each child, and the scenarios that it fails.
MISTAKES: Dict[str, Set[str]] = {
    "backtrace_is_a_string": {"reply-fields"},
    "cuts_letters": {"long-message"},
    "dies_of_exceptions": {
        "unknown-task",
        "long-message",
        "exception",
        "exception-backtrace",
        "exception-cause",
        "publish-refused",
        "publish-without-an-answer",
        "exit",
        "line-over-the-limit",
    },
    "dies_of_exit": {"exit"},
    "dies_of_int": {"int", "int-during-a-task"},
    "dies_of_term": {
        "term-during-a-task",
        "term-of-what-was-begun",
        "term-of-what-waits",
    },
    "drops_early_requests": {"request-while-booting"},
    "events_in_the_original_protocol": {"original-protocol-events"},
    "forgets_to_flush": {"replies"},
    "hello_in_the_original_protocol": {"original-protocol", "original-protocol-unset"},
    "holds_the_lock": {"ping-during-a-task"},
    "id_is_a_number": {"id-digits"},
    "ignores_answers": {"publish", "publish-on-success", "publish-refused"},
    "ignores_cancel": {"cancel"},
    "ignores_eof": {
        "eof-while-booting",
        "eof",
        "eof-after-a-request",
        "eof-during-a-task",
        "publish-without-an-answer",
        "subprocess-and-eof",
    },
    "ignores_the_channel": {"channel-fd"},
    "ignores_stop": {"stop", "stop-during-a-task"},
    "ignores_term": {
        "term",
        "term-during-a-task",
        "term-of-what-was-begun",
        "term-of-what-waits",
    },
    "latin_1_in_events": {"utf-8"},
    "late_event": {"event-ids"},
    "leaks": {"memory"},
    "leaves_a_process": {"no-process-left"},
    "looks_up_cancelled": {"cancel-of-no-request"},
    "loses_digits": {"integers-of-64-bits", "integers-beyond-64-bits"},
    "loses_the_last_task": {"eof-during-a-task", "publish-without-an-answer"},
    "makes_texts": {
        "control-characters",
        "empty-list-and-object",
        "floats",
        "floats-of-17-digits",
        "integers",
        "integers-beyond-64-bits",
        "integers-of-64-bits",
        "keyword-arguments",
        "large-argument",
        "nested",
        "nul",
        "null-and-booleans",
        "numbers-as-text",
        "unicode",
    },
    "nan_in_events": {"no-nan"},
    "no_cause": {"exception-cause"},
    "no_id": {"reply-id"},
    "no_pong": {
        "ping",
        "ping-during-a-task",
        "unknown-field-of-op",
        # They ping to know that a task was begun.
        "int-during-a-task",
        "term-during-a-task",
    },
    "no_retries": {"context"},
    "one_at_a_time": {"inflight-order", "inflight-full"},
    "one_type_for_empty": {"empty-list-and-object"},
    "over_the_limit": {"line-over-the-limit"},
    "pastes_the_id": {
        "id-quotes",
        "id-backslashes",
        "id-control-characters",
        "id-nul",
        "id-spaces",
    },
    "prints_after_a_task": {"noise"},
    "prints_at_exit": {"print-at-exit"},
    "prints_to_stdout": {"print", "subprocess-and-channel"},
    "prints_while_booting": {"noise-before-hello"},
    "quiet_stderr": {"stderr"},
    "reads_ascii": {"id-emoji", "id-line-separators", "keyword-arguments", "unicode"},
    "reads_64_kb": {"id-long", "large-argument", "long-message"},
    "refuses_unknown_fields": {"unknown-field"},
    "refuses_unknown_ops": {"unknown-op"},
    "replies_before_hello": {"hello-first"},
    "replies_twice": {"reply-once"},
    "says_nothing_on_the_way": {"log", "progress"},
    "says_infinity": {"not-a-number"},
    "second_hello": {"hello-once"},
    "shares_its_channel": {"subprocess-and-channel"},
    "shortens_the_id": {"id-long"},
    "splits_at_unicode": {"id-line-separators", "unicode"},
    "takes_reads_for_lines": {
        "id-long",
        "large-argument",
        "long-message",
        "one-byte-at-a-time",
        "several-lines-at-once",
    },
    "throttles_at_term": {"term-of-what-waits"},
    "waits_for_subprocesses": {"subprocess-and-eof"},
    "writes_once": {"id-long", "large-argument", "large-result", "long-message"},
    "wrong_hello": {"hello"},
    "wrong_id": {"replies"},
    "wrong_status": {"status-retry"},
}


#: A child mostly waits; so many of them wait at the same time.
AT_ONCE = 6
BATCHES = 8


def play(child: str, rows: List[Scenario]) -> List[Result]:
    command = (sys.executable, "-S", str(CHILDREN / f"{child}.py"))
    company = Company(Options(command, timeout=5, boot_timeout=15))
    try:
        return play_all(company, rows, lambda result: None)
    finally:
        company.close()


def failed(results: List[Result]) -> Dict[str, Result]:
    return {r.scenario.id: r for r in results if r.outcome is Outcome.FAILED}


def difference(child: str) -> List[object]:
    """What fails and should not, and what does not fail and should."""
    expected = MISTAKES[child]
    found = failed(play(child, [r for r in ALL if r.id != LONG or LONG in expected]))
    more = [result for id, result in found.items() if id not in expected]
    return [*more, *(expected - set(found))]


@pytest.mark.parametrize("batch", range(BATCHES))
def test_each_mistake_is_found_and_nothing_else(batch: int) -> None:
    children = list(MISTAKES)[batch::BATCHES]
    with ThreadPoolExecutor(AT_ONCE) as threads:
        found = dict(zip(children, threads.map(difference, children)))
    assert {child: wrong for child, wrong in found.items() if wrong} == {}


def test_every_child_is_played() -> None:
    files = {path.stem for path in CHILDREN.glob("*.py")}
    assert files == {*MISTAKES, "good"}

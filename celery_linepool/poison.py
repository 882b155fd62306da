"""A task that takes its children with it: counted, and stopped in the end.

A broker that delivers a task again does not say how often it did. So a task whose
child died, and that Celery would give back to the broker, is sent anew instead, with
the number of its crashes in a header, and the old message is acknowledged: the count
travels with the task, from worker to worker.
"""

from __future__ import annotations

from typing import Any

#: Where the count travels, among the message's own headers.
HEADER = "linepool_crashes"


def crashes_of(request: Any) -> int:
    """How many children the task has taken with it so far."""
    try:
        return int((request.request_dict.get(HEADER)) or 0)
    except (TypeError, ValueError):
        return 0  # somebody else's header


def send_again(request: Any, crashes: int) -> None:
    """Send the task anew, to the same queue, and acknowledge this message.

    In this order: if the worker dies in between, the task is there twice, and never
    not at all.
    """
    context = request._context
    headers = {**(context.headers or {}), HEADER: crashes}
    signature = request.task.signature_from_request(
        context,
        args=request.args,
        kwargs=request.kwargs,
        retries=context.retries,
        headers=headers,
    )
    signature.apply_async()
    request.acknowledge()
    request.send_event("task-rejected", requeue=True)

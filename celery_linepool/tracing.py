"""The context of a trace, from the worker to the child.

OpenTelemetry and Sentry are asked for the span that the worker runs the task in, if
the app uses them. Otherwise the message's own headers are passed on.
"""

from __future__ import annotations

import logging
import sys
from typing import Any, Dict

logger = logging.getLogger(__name__)

#: W3C's headers, and Sentry's.
HEADERS = ("traceparent", "tracestate", "baggage", "sentry-trace")


def context_of(request: Any) -> Dict[str, str]:
    """The headers for the child of the task with this Celery request."""
    found, given = {}, vars(request)
    for name in HEADERS:
        value = given.get(name)
        if isinstance(value, str):
            found[name] = value
    found.update(_sentry())
    found.update(_opentelemetry())
    return found


def _opentelemetry() -> Dict[str, str]:
    # Looked up and never imported: who traces has imported it.
    propagate = sys.modules.get("opentelemetry.propagate")
    if propagate is None:
        return {}
    carrier: Dict[str, str] = {}
    propagate.inject(carrier)
    return carrier


def _sentry() -> Dict[str, str]:
    sentry = sys.modules.get("sentry_sdk")
    if sentry is None or not sentry.get_client().is_active():
        return {}
    told = {"sentry-trace": sentry.get_traceparent(), "baggage": sentry.get_baggage()}
    return {name: value for name, value in told.items() if value}

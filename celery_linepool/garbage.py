"""The garbage collector, kept from what is there when a worker has started.

Now and then it looks at every object. Celery, its libraries and the application are so
many that all tasks stand still for 40 to 50 ms meanwhile, and there are more of these
looks the more tasks there are (docs/benchmarks/costs.md has the figures).
"""

from __future__ import annotations

import gc
import threading


def freeze() -> None:
    """Never look again at what is there now, where the process is the worker's own.

    A worker that is the guest of a process runs in a thread of it. What its host has
    now may be garbage later.
    """
    if threading.current_thread() is threading.main_thread():
        gc.collect()
        gc.freeze()

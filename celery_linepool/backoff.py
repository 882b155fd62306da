"""When to try again after a child did not come up: a policy without clock or thread."""

from __future__ import annotations

import random
from typing import Callable

#: Seconds before the second attempt: short, a single crash should not be felt.
FIRST = 0.1
#: Seconds between attempts at the most. Kubernetes' crash loop and systemd's restart
#: limits are of minutes; a task waits for us, so a broken deploy that is mended
#: should be noticed sooner.
CAP = 30.0
#: A delay varies by this part of itself, so that many children do not boot in step.
JITTER = 0.2


class Backoff:
    """Exponential delay with jitter, reset by a success."""

    def __init__(self, uniform: Callable[[float, float], float] = random.uniform):
        self._uniform = uniform
        self.failures = 0

    def succeeded(self) -> None:
        self.failures = 0

    def failed(self) -> float:
        """Count a failure; seconds to wait before the next attempt."""
        self.failures += 1
        delay = min(CAP, FIRST * 2.0 ** min(self.failures - 1, 16))
        return delay * self._uniform(1 - JITTER, 1 + JITTER)

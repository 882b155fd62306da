"""An endpoint for Prometheus: what the pools count, read when it is asked.

Needs ``pip install "celery-linepool[prometheus]"``, and does nothing without the
setting ``linepool_metrics``.
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING, Any, Callable, Iterator, Mapping, Tuple

from .figures import Histogram
from .member import Phase

if TYPE_CHECKING:
    from .children import Children

logger = logging.getLogger(__name__)

Stop = Callable[[], None]


class Collector:
    """The figures of all pools, as Prometheus wants them. From any thread."""

    def __init__(self, pools: Mapping[str, "Children"]) -> None:
        self._pools = pools

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        children = GaugeMetricFamily(
            "linepool_children", "Children by state.", labels=["pool", "state"]
        )
        memory = GaugeMetricFamily(
            "linepool_memory_bytes", "Memory of all process trees.", labels=["pool"]
        )
        waiting = GaugeMetricFamily(
            "linepool_waiting_tasks", "Tasks that wait for a child.", labels=["pool"]
        )
        backoff = GaugeMetricFamily(
            "linepool_failed_boots",
            "Boots that failed since the last one that did not.",
            labels=["pool"],
        )
        retry = GaugeMetricFamily(
            "linepool_next_boot_seconds",
            "Until a boot is tried again, after one has failed.",
            labels=["pool"],
        )
        tasks = CounterMetricFamily(
            "linepool_tasks", "Tasks by what came of them.", labels=["pool", "outcome"]
        )
        restarts = CounterMetricFamily(
            "linepool_restarts",
            "Children that ended, by cause.",
            labels=["pool", "cause"],
        )
        for name, pool in self._pools.items():
            members = pool.members()
            states = Counter(member.phase for member in members)
            for phase in Phase:
                if phase is not Phase.GONE:
                    children.add_metric([name, phase.value], states[phase])
            memory.add_metric([name], 1024 * sum(m.memory for m in members))
            waiting.add_metric([name], pool.waiting)
            backoff.add_metric([name], pool.failed_boots)
            retry.add_metric([name], pool.next_boot_in or 0)
            for outcome, count in list(pool.figures.outcomes.items()):
                tasks.add_metric([name, outcome], count)
            for cause, count in list(pool.figures.restarts.items()):
                restarts.add_metric([name, cause], count)
        yield from (children, memory, waiting, backoff, retry, tasks, restarts)
        yield from self._histograms()

    def _histograms(self) -> Iterator[Any]:
        from prometheus_client.core import HistogramMetricFamily

        for metric, attribute, text in (
            ("linepool_wait_seconds", "waited", "From the hand-over to a child."),
            ("linepool_run_seconds", "ran", "From a request to its reply."),
            ("linepool_boot_seconds", "booted", "From a start to the hello."),
        ):
            family = HistogramMetricFamily(metric, text, labels=["pool"])
            for name, pool in self._pools.items():
                histogram: Histogram = getattr(pool.figures, attribute)
                family.add_metric([name], *_cumulative(histogram))
            yield family


def _cumulative(histogram: Histogram) -> Tuple[Any, float]:
    total, buckets = 0, []
    bounds = [*(f"{bound:g}" for bound in histogram.bounds), "+Inf"]
    for bound, count in zip(bounds, histogram.counts[:]):
        total += count
        buckets.append((bound, total))
    return buckets, histogram.sum


def serve(pools: Mapping[str, "Children"], host: str, port: int) -> Stop:
    """Answer Prometheus at this address, in a thread; what ends it.

    Raises:
        OSError: the address is in use, or is none of this host's.
        ImportError: the package prometheus-client is not installed.
    """
    from prometheus_client import CollectorRegistry, start_http_server

    registry = CollectorRegistry()
    registry.register(Collector(pools))
    server, thread = start_http_server(port, host, registry)
    logger.info("linepool: metrics at http://%s:%d/metrics", host, server.server_port)

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return stop

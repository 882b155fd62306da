"""Which pool serves a task: by its stub, by the globs of the pools, by its queue."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Dict, Iterable, List, Mapping, Optional, Tuple

from .settings import PoolSettings, SettingError

if TYPE_CHECKING:
    from .tasks import ForeignTask

#: Celery's own tasks need Python; no glob covers them.
BUILTIN = "celery."


class Router:
    """Names of pools for tasks. Never asks the broker, never changes."""

    def __init__(self, pools: Mapping[str, PoolSettings]) -> None:
        self._pools = pools
        self._by_name: Dict[str, Optional[str]] = {}
        self._by_hello: Dict[str, str] = {}
        self._by_queue: Dict[str, str] = {}
        self._queue_names: Dict[Tuple[Any, Any], str] = {}
        for pool in pools.values():
            for queue in pool.queues:
                other = self._by_queue.setdefault(queue, pool.name)
                if other != pool.name:
                    raise SettingError(
                        f"linepool_pools[{pool.name!r}]['queues']",
                        f"names {queue!r}, which pool {other!r} serves already",
                    )

    def literal_names(self) -> List[str]:
        """Task names that the settings spell out; no message needs to come first."""
        return [
            name
            for pool in self._pools.values()
            for name in pool.tasks
            if not any(c in name for c in "*?[") and not name.startswith(BUILTIN)
        ]

    def for_name(self, name: str) -> Optional[str]:
        """The first pool whose globs cover the name, or whose children say it."""
        if name.startswith(BUILTIN):
            return None
        by_glob = next((p.name for p in self._pools.values() if p.serves(name)), None)
        return by_glob or self._by_hello.get(name)

    def learn_tasks(self, pool: str, names: Iterable[str]) -> List[str]:
        """Remember what the children of a pool say that they serve; the names of those.

        Where two pools say the same, who said it first serves it.
        """
        found = []
        for name in names:
            if name and not name.startswith(BUILTIN):
                self._by_name.pop(name, None)
                self._by_hello.setdefault(name, pool)
                found.append(name)
        return found

    def for_queue(self, queue: Optional[str]) -> Optional[str]:
        return None if queue is None else self._by_queue.get(queue)

    def for_task(self, task: "ForeignTask", queue: Optional[str]) -> Optional[str]:
        """The pool of a foreign task: its stub's own, by its name, by its queue.

        A lone pool serves the stubs that nothing else covers, too.
        """
        if task.pool is not None:
            return task.pool if task.pool in self._pools else None
        name: str = task.name
        if name not in self._by_name:
            self._by_name[name] = self.for_name(name)
        found = self._by_name[name] or self.for_queue(queue)
        if found is None and len(self._pools) == 1:
            return next(iter(self._pools))
        return found

    @property
    def knows_queues(self) -> bool:
        return bool(self._by_queue)

    def learn_queues(self, queues: Mapping[str, Any]) -> None:
        """Remember which queue a message came from by what it says of its delivery."""
        self._queue_names = {
            (queue.exchange.name, queue.routing_key): name
            for name, queue in queues.items()
        }

    def queue_of(self, delivery_info: Optional[Mapping[str, Any]]) -> Optional[str]:
        """The queue of a message; Celery's own carry their name as routing key."""
        info = delivery_info or {}
        key = info.get("routing_key")
        return self._queue_names.get((info.get("exchange"), key), key)

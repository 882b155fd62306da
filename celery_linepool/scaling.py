"""How many children each pool is to have, where the worker's ``-c`` decides.

Celery scales a worker by a number of processes. Which pool's they are is decided here:
more where most tasks are, fewer where fewest are.
"""

from __future__ import annotations

from typing import Dict, List, Mapping, Tuple

from .settings import PoolSettings


class Scaling:
    """The sizes of all pools, and what becomes of them."""

    def __init__(self, pools: Mapping[str, PoolSettings]) -> None:
        self.sizes = {name: pool.size for name, pool in pools.items()}
        #: Whether ``--autoscale`` does it: to it the children of all pools are one.
        self.automatic = False
        self._followers = [name for name, pool in pools.items() if pool.follows]
        # Nobody knows whose the next task is, so each of several pools keeps a child.
        self._least = int(len(pools) > 1)

    def followers(self) -> List[str]:
        """Pools whose size is the worker's.

        Raises:
            ValueError: there are none.
        """
        if not self._followers:
            raise ValueError(
                "linepool: every pool in linepool_pools has a size of its own; "
                "without it a pool has the worker's -c, and can be scaled"
            )
        return self._followers

    def fixed(self, name: str, size: int) -> Dict[str, int]:
        """The sizes with so many in one pool, whatever its settings say.

        Raises:
            ValueError: there is no such pool, or that is no size.
        """
        if name not in self.sizes:
            raise ValueError(f"no pool {name!r}; there are {', '.join(self.sizes)}")
        if isinstance(size, bool) or not isinstance(size, int) or size < 0:
            raise ValueError(f"a pool cannot have {size!r} children")
        return {**self.sizes, name: size}

    def grown(self, n: int, loads: Mapping[str, int]) -> Dict[str, int]:
        """The sizes with `n` more; `loads` are the tasks that each pool has.

        Raises:
            ValueError: nothing can be scaled.
        """
        sizes, pools = dict(self.sizes), self.followers()
        for _ in range(n):
            sizes[max(pools, key=lambda name: _crowd(name, sizes, loads))] += 1
        return sizes

    def shrunk(self, n: int, loads: Mapping[str, int]) -> Dict[str, int]:
        """The sizes with `n` fewer.

        Raises:
            ValueError: so many may not be taken away.
        """
        sizes, pools = dict(self.sizes), self.followers()
        spare = sum(max(0, sizes[name] - self._least) for name in pools)
        if self.automatic:
            n = min(n, spare)
        if n > spare:
            raise ValueError(
                f"linepool: {n} children cannot be taken away, at most {spare}"
            )
        for _ in range(n):
            large = [name for name in pools if sizes[name] > self._least]
            sizes[min(large, key=lambda name: _crowd(name, sizes, loads))] -= 1
        return sizes


def _crowd(
    name: str, sizes: Mapping[str, int], loads: Mapping[str, int]
) -> Tuple[float, int]:
    """Tasks for each child; among equals the pool with fewer children is first."""
    return loads[name] / max(sizes[name], 1), -sizes[name]

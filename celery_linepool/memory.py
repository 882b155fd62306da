"""How much memory children use, with everything that they have started themselves."""

from __future__ import annotations

from collections import defaultdict
from typing import Dict, Iterable, List

import psutil


def tree_sizes(pids: Iterable[int]) -> Dict[int, int]:
    """KiB of resident memory of each process and its descendants, by pid.

    Pages that a process shares with its forks count for each of them: the sum is what
    the tree could use, and more than what it costs. One look at all processes serves
    all children.
    """
    sizes: Dict[int, int] = {}
    children: Dict[int, List[int]] = defaultdict(list)
    for process in psutil.process_iter(["ppid", "memory_info"]):
        # What must not be read, or is gone by now, is None.
        if process.info["memory_info"] is not None:
            sizes[process.pid] = process.info["memory_info"].rss // 1024
            children[process.info["ppid"]].append(process.pid)
    return {pid: _tree(pid, sizes, children) for pid in pids if pid in sizes}


def _tree(pid: int, sizes: Dict[int, int], children: Dict[int, List[int]]) -> int:
    return sizes[pid] + sum(_tree(child, sizes, children) for child in children[pid])

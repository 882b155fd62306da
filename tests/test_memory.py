"""How much memory a child uses, with all that it has started."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from celery_linepool.memory import tree_sizes

#: Uses 40 MiB, and has a child that uses 80; says when both do.
FAMILY = """
import subprocess, sys
held = bytearray(40 << 20)
if len(sys.argv) == 1:
    code = "held = bytearray(80 << 20); print(flush=True); input()"
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    child.stdout.readline()
print(flush=True)
input()
"""


@pytest.fixture
def family() -> Iterator[int]:
    with subprocess.Popen(
        [sys.executable, "-c", FAMILY], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stdin is not None
        process.stdout.readline()
        yield process.pid
        process.stdin.write(b"\n")


def test_a_tree_is_counted_whole(family: int) -> None:
    sizes = tree_sizes([family, os.getpid()])
    assert sizes[family] > (40 + 80) * 1024
    assert sizes[os.getpid()] > sizes[family]  # it is one of ours


def test_who_is_gone_uses_nothing() -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    assert tree_sizes([process.pid]) == {}

"""Tells when files have changed: those of a pool's code, or one that somebody touches.

It looks when it is asked, and remembers what it saw. No threads, no clock.
"""

from __future__ import annotations

import glob
import os
from typing import Dict, Iterator, Optional, Sequence, Tuple

#: What a file is seen by: when it was written, and its size.
Seen = Tuple[int, int]


class Watch:
    """Some files, of which it is told when one appears, goes or changes.

    Arguments:
        patterns: files, folders with all that is in them, and globs, where ``**`` is
            any number of folders. Names that begin with a dot are left out, unless
            they are spelled out.
        folder: what they are relative to; the working directory by default.
    """

    def __init__(self, patterns: Sequence[str], folder: Optional[str] = None) -> None:
        self._patterns = [os.path.join(folder or os.getcwd(), p) for p in patterns]
        self._seen = self._look()
        self._changed: Optional[str] = None

    def changed(self) -> Optional[str]:
        """A file that has changed since it was asked, once all are left alone.

        An editor, or a deploy, writes more than once: as long as something differs from
        the last look nothing is said.
        """
        seen = self._look()
        if seen == self._seen:
            changed, self._changed = self._changed, None
            return changed
        differs = seen.items() ^ self._seen.items()
        self._seen, self._changed = seen, min(path for path, _ in differs)
        return None

    def _look(self) -> Dict[str, Seen]:
        found = {}
        for path in self._files():
            try:
                stat = os.stat(path)
            except OSError:
                continue  # it is gone, or a link to nothing
            found[path] = (stat.st_mtime_ns, stat.st_size)
        return found

    def _files(self) -> Iterator[str]:
        for pattern in self._patterns:
            for path in glob.iglob(pattern, recursive=True):
                if os.path.isdir(path):
                    yield from _files_below(path)
                else:
                    yield path


def _files_below(folder: str) -> Iterator[str]:
    for where, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith("."):
                yield os.path.join(where, name)

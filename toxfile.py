"""Shows pyenv's interpreters to tox: its shims run only those that are chosen."""

import os
from pathlib import Path

from tox.plugin import impl


@impl
def tox_add_option(parser: object) -> None:
    root = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser()
    folders = [str(folder) for folder in sorted(root.glob("versions/3.*/bin"))]
    # At the end: what is in PATH already keeps its place.
    os.environ["PATH"] = os.pathsep.join([os.environ["PATH"], *folders])

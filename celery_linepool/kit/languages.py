"""Which language a child is written in, and what that language cannot do."""

from __future__ import annotations

import os
import re
from typing import Dict, Sequence, Tuple

#: Names of programs and ends of file names, as they stand in a command.
SIGNS: Dict[str, Tuple[str, ...]] = {
    "ruby": ("ruby", "bundle", "rails", "rake", "jruby", ".rb"),
    "node": ("node", "npm", "npx", "yarn", "pnpm", "tsx", "bun", "deno")
    + (".js", ".cjs", ".mjs", ".ts"),
    "php": ("php", "artisan", ".php", ".phar"),
    "go": ("go", ".go"),
    "python": ("python", "uv", "poetry", "pipenv", "pypy", ".py", ".pyz"),
    "perl": ("perl", "carton", ".pl"),
    "sh": ("sh", "bash", "dash", "zsh", "ksh", ".sh", ".bash"),
}
LANGUAGES = (*SIGNS, "other")

#: The largest integer that keeps its digits, where the language has a largest one.
LARGEST_INTEGER = {"node": 2**53 - 1, "php": 2**63 - 1, "perl": 2**63 - 1}
#: One type for lists and for objects.
CANNOT_TELL_EMPTY = {"php"}
#: The child can reply, and ends then.
CANNOT_SURVIVE_EXIT = {"php"}
#: What it opens is inherited by every subprocess.
CANNOT_CLOSE_ON_EXEC = {"php"}
#: Nothing of the program runs after it.
CANNOT_CATCH_EXIT = {"go"}
#: A task begins with a fork, and what was forked has no trap for signals at first.
FORKS_FOR_A_TASK = {"sh"}


def language_of(command: Sequence[str], said: str = "") -> str:
    """What a hello says, or what the command looks like; ``other`` if unknown."""
    said = said.lower()
    if said in SIGNS:
        return said
    for word in command:  # "bash -c" says less than "worker.rb"
        ending = os.path.splitext(word)[1].lower()
        for language, signs in SIGNS.items():
            if ending and ending in signs:
                return language
    for word in command:
        program = re.sub(r"[\d.]+$", "", os.path.basename(word).lower())
        for language, signs in SIGNS.items():
            if program in signs:
                return language
    return "other"

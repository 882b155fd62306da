"""How to mend what a child does wrong, in the words of its language."""

from __future__ import annotations

import configparser
import functools
import os

FILE = os.path.join(os.path.dirname(__file__), "remedies.ini")


@functools.lru_cache(maxsize=1)
def table() -> configparser.RawConfigParser:
    """A section for each thing to mend, in it a text for each language."""
    parser = configparser.RawConfigParser(delimiters=("=",))
    with open(FILE, encoding="utf-8") as file:
        parser.read_file(file)
    return parser


def remedy(mend: str, language: str) -> str:
    """What to do; where a language needs no words of its own, those for all."""
    texts = table()[mend]
    return " ".join(texts.get(language, texts["other"]).split())

"""Whether two JSON values are the same, and where they are not."""

from __future__ import annotations

from typing import Any, Optional


def difference(expected: Any, found: Any, where: str = "") -> Optional[str]:
    """Where `found` is another value, in words; None if it is the same.

    1 and 1.0 are one number: JSON has no others. 1 and true are two values.
    """
    if _kind(expected) != _kind(found):
        return f"{_short(expected)} at {where or 'the top'}, not {_short(found)}"
    if isinstance(expected, dict):
        for name in {**expected, **found}:
            if name not in found or name not in expected:
                word = "a" if name in found else "no"
                return f"{word} key {_short(name)} at {where or 'the top'}"
        pairs = ((f"[{_short(name)}]", name) for name in expected)
    elif isinstance(expected, list):
        if len(expected) != len(found):
            return f"{len(expected)} items at {where or 'the top'}, not {len(found)}"
        pairs = ((f"[{n}]", n) for n in range(len(expected)))
    else:
        if expected == found:
            return None
        return f"{_short(expected)} at {where or 'the top'}, not {_short(found)}"
    found_there = (
        difference(expected[key], found[key], where + text) for text, key in pairs
    )
    return next((words for words in found_there if words), None)


def _kind(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return repr(value)
    return "number" if isinstance(value, (int, float)) else type(value).__name__


def _short(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:80]} ... ({len(text)} characters)"

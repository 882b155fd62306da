"""Golden transcripts, and a worker's side of them.

docs/transcripts/README.md tells what they mean.
"""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple

from jsonschema import Draft202012Validator
from sdk_driver import Child, Line

from celery_linepool.encoding import encode_op, encode_request

DOCS = Path(__file__).parent.parent / "docs"
SCHEMA = json.loads((DOCS / "protocol.schema.json").read_text())

#: What a transcript calls something that the child has chosen, and what it chose.
Names = Dict[str, Any]


def validator(name: str) -> Draft202012Validator:
    """Of one definition of the schema."""
    definitions = {"$defs": SCHEMA["$defs"], "$schema": SCHEMA["$schema"]}
    return Draft202012Validator({**definitions, "$ref": f"#/$defs/{name}"})


class Transcript(NamedTuple):
    name: str
    protocol: int
    channel: str
    inflight: int
    steps: List[Line]

    @property
    def up(self) -> str:
        """The definition of its lines up in the schema."""
        return "up" if self.protocol >= 2 else "original_up"


def load(path: Path) -> Transcript:
    head, *steps = [json.loads(line) for line in path.read_text().split("\n") if line]
    assert isinstance(head["transcript"], str)
    inflight = head.get("inflight", 1)
    return Transcript(path.stem, head["protocol"], head["channel"], inflight, steps)


TRANSCRIPTS = [load(path) for path in sorted(DOCS.glob("transcripts/*.jsonl"))]

# --- patterns -------------------------------------------------------------------------

SAMPLES: Dict[str, Any] = {"string": "text", "list": [], "number": 7, "object": {}}


def fill(pattern: Any, names: Names) -> Any:
    """A value that matches."""
    if isinstance(pattern, list):
        return [fill(item, names) for item in pattern]
    if not isinstance(pattern, dict):
        return pattern
    if "$one" in pattern:
        return pattern["$one"][0]
    if "$the" in pattern:
        return names[pattern["$the"]]
    if "$repeat" in pattern:
        text, count = pattern["$repeat"]
        return text * count
    if "$any" not in pattern:
        return {key: fill(item, names) for key, item in pattern.items()}
    value = SAMPLES[pattern["$any"]]
    if "$with" in pattern:
        value = [pattern["$with"]] if value == [] else pattern["$with"]
    if "$as" in pattern:
        value = names[pattern["$as"]] = len(names)
    return value


def matches(pattern: Any, value: Any, names: Names) -> bool:
    if isinstance(pattern, dict) and "$any" in pattern:
        return _is_any(pattern, value, names)
    if isinstance(pattern, dict) and "$one" in pattern:
        return any(matches(one, value, names) for one in pattern["$one"])
    if isinstance(pattern, dict) and pattern.keys() & {"$the", "$repeat"}:
        return bool(value == fill(pattern, names))
    if isinstance(pattern, dict):
        same = isinstance(value, dict) and value.keys() == pattern.keys()
        return same and all(matches(pattern[key], value[key], names) for key in pattern)
    if isinstance(pattern, list):
        same = isinstance(value, list) and len(value) == len(pattern)
        return same and all(matches(*pair, names) for pair in zip(pattern, value))
    # 1 and 1.0 are one number of JSON, and True is none.
    return isinstance(pattern, bool) is isinstance(value, bool) and pattern == value


def _is_any(pattern: Line, value: Any, names: Names) -> bool:
    kind = type(SAMPLES[pattern["$any"]])
    kinds = (int, float) if kind is int else kind
    if not isinstance(value, kinds) or isinstance(value, bool):
        return False
    if "$as" in pattern:
        names[pattern["$as"]] = value
    texts = [value] if isinstance(value, str) else value
    return "$with" not in pattern or any(pattern["$with"] in text for text in texts)


def is_line(pattern: Line, line: Line, names: Names) -> bool:
    """`matches`, but a line may have more fields, and one left out is null."""
    return matches(pattern, {key: line.get(key) for key in pattern}, names)


# --- the worker's side ----------------------------------------------------------------


def encode(line: Line) -> bytes:
    """As a worker writes it."""
    fields = dict(line)
    if "op" in line:
        return encode_op(fields.pop("op"), fields)
    if line.keys() == {"id", "payload"}:
        return encode_request(line["id"], line["payload"])
    return json.dumps(line).encode() + b"\n"  # of a later worker


class Player:
    """Plays a transcript to a child."""

    def __init__(self, transcript: Transcript, child: Child) -> None:
        self._transcript = transcript
        self._child = child
        self._names: Names = {}
        self._up = validator(transcript.up)

    def play(self) -> None:
        for step in self._transcript.steps:
            [(kind, value)] = step.items()
            STEPS[kind](self, value)

    def down(self, line: Line) -> None:
        self._child.input.write(encode(fill(line, self._names)))
        self._child.input.flush()

    def up(self, pattern: Line) -> None:
        self.any_order([pattern])

    def any_order(self, patterns: List[Line]) -> None:
        left = list(patterns)
        while left:
            line = self._child.read()
            self._up.validate(line)
            for pattern in left:
                if is_line(pattern, line, self._names):
                    left.remove(pattern)
                    break
            else:
                raise AssertionError(f"{line} is none of {left}")

    def stray(self, line: Any) -> None:
        """Other children may say this. Not ours."""

    def eof(self, _: bool) -> None:
        self._child.input.close()

    def signal(self, name: str) -> None:
        self._child.signal(signal.Signals[f"SIG{name}"])

    def exit(self, code: int) -> None:
        assert self._child.end(eof=False)[:2] == (code, b"")


STEPS: Dict[str, Callable[[Player, Any], None]] = {
    "down": Player.down,
    "up": Player.up,
    "any_order": Player.any_order,
    "stray": Player.stray,
    "eof": Player.eof,
    "signal": Player.signal,
    "exit": Player.exit,
}

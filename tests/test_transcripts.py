"""The golden transcripts: every helper library and our own side keep to them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Tuple

import pytest
from sdk_driver import SDK, Child, Line
from transcripts import TRANSCRIPTS, Names, Player, Transcript, encode, fill, is_line

from celery_linepool.messages import Event, Hello, Noise, Reply, Told
from celery_linepool.protocol import Connection, Handshake, State

pytestmark = pytest.mark.newest_celery

# --- the helper libraries -------------------------------------------------------------

CHECK = SDK / "check"


class Language(NamedTuple):
    """How to start a worker that serves the check tasks and no others."""

    #: Its check tasks. Without this file it is left out for now.
    check: str
    #: What it needs of the sdk beside it, and under which names.
    files: Dict[str, str]
    program: Tuple[str, str]
    command: List[str]
    #: What makes the command of the program, where that is needed.
    build: List[str] = []


LANGUAGES = {
    "go": Language(
        "check.go",
        {
            "linepool.go": "linepool/linepool.go",
            "check/check.go": "linepool/check.go",
            "example/go.mod": "go.mod",
        },
        (
            "main.go",
            "package main\n"
            'import ("os"; "strconv"; "worker/linepool")\n'
            "func main() {\n"
            '    n, _ := strconv.Atoi(os.Getenv("INFLIGHT"))\n'
            "    linepool.Run(n)\n"
            "}\n",
        ),
        ["./worker"],
        ["go", "build", "-o", "worker", "."],
    ),
    "node": Language(
        "check.cjs",
        {"linepool.cjs": "linepool.cjs"},
        (
            "worker.js",
            "const { INFLIGHT } = process.env;"
            "require('./linepool.cjs').run({ inflight: Number(INFLIGHT) });",
        ),
        ["node", "worker.js"],
    ),
    "perl": Language(
        "check.pl",
        {"Linepool.pm": "Linepool.pm"},
        ("worker.pl", "use lib '.'; use Linepool; Linepool->run;"),
        ["perl", "worker.pl"],
    ),
    "php": Language(
        "check.php",
        {"linepool.php": "linepool.php"},
        ("worker.php", "<?php require 'linepool.php'; (new Linepool\\Child())->run();"),
        ["php", "worker.php"],
    ),
    "python": Language(
        "check.py",
        {"linepool.py": "linepool.py"},
        (
            "worker.py",
            "import linepool, os; linepool.run(inflight=int(os.environ['INFLIGHT']))",
        ),
        [sys.executable, "worker.py"],
    ),
    "ruby": Language(
        "check.rb",
        {"linepool.rb": "linepool.rb"},
        (
            "worker.rb",
            'require "./linepool"; Linepool.run(inflight: ENV["INFLIGHT"].to_i)',
        ),
        ["ruby", "worker.rb"],
    ),
    "sh": Language(
        "check.sh",
        {"linepool.sh": "linepool.sh"},
        ("worker.sh", ". ./linepool.sh\nlinepool_run\n"),
        ["sh", "worker.sh"],
    ),
}

#: What a language cannot do, and the transcripts that need it.
EXCLUDED: Dict[str, Dict[str, List[str]]] = {
    "go": {"it runs nothing after os.Exit": ["exit"]},
    "node": {"it has no integers beyond 2 ** 53": ["integers", "big_integers"]},
    "perl": {
        "integers beyond 64 bits become text": ["big_integers"],
        "it serves one task at a time": ["any_order", "inflight", "restart"],
        "it reads nothing while a task runs": ["ping", "ping_busy"],
    },
    "php": {
        "integers beyond 64 bits become text": ["big_integers"],
        "it has one type for lists and for objects": ["empty_values"],
        "it replies after an exit, and ends then": ["exit"],
        "it serves one task at a time": ["any_order", "inflight", "restart"],
        "it reads nothing while a task runs": ["ping", "ping_busy"],
    },
    "sh": {
        "it serves one task at a time": ["any_order", "inflight", "restart"],
        "it hears nothing while a command runs": ["cancel", "ping", "ping_busy"],
        "so it names no features": ["stop", "stop_busy"],
        "its errors are what was written to stderr, and have no causes": [
            *("cause", "statuses", "original_statuses"),
        ],
    },
}


def excluded(language: str) -> List[str]:
    return [name for names in EXCLUDED.get(language, {}).values() for name in names]


REPLAYS = [
    pytest.param(language, transcript, id=f"{language}-{transcript.name}")
    for language in LANGUAGES
    if (CHECK / LANGUAGES[language].check).exists()
    for transcript in TRANSCRIPTS
    if transcript.name not in excluded(language)
]


@pytest.fixture(scope="session")
def worker_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a language's worker, which is made for the first who asks."""
    folders: Dict[str, Path] = {}

    def make(name: str) -> Path:
        language, folder = LANGUAGES[name], tmp_path_factory.mktemp(name)
        for source, target in language.files.items():
            (folder / target).parent.mkdir(exist_ok=True)
            (folder / target).write_bytes((SDK / source).read_bytes())
        program, text = language.program
        (folder / program).write_text(text)
        if language.build:
            subprocess.run(language.build, cwd=folder, check=True)
        return folder

    def find(name: str) -> Path:
        if name not in folders:
            folders[name] = make(name)
        return folders[name]

    return find


@pytest.fixture
def child(
    language: str,
    transcript: Transcript,
    worker_of: Callable[[str], Path],
    tmp_path: Path,
) -> Iterator[Child]:
    command, log = LANGUAGES[language].command, tmp_path / "stderr"
    log.touch()
    child = Child(
        ["sh", "-c", 'cd "$0" && exec "$@"', str(worker_of(language))]
        # A pipe that nobody reads would fill.
        + ["sh", "-c", 'exec "$@" 2>"$0"', str(log), *command],
        channel=transcript.channel,
        protocol=1,  # so that the player reads the hello
        LINEPOOL_PROTOCOL=str(transcript.protocol),
        LINEPOOL_CHECK=str(CHECK),
        INFLIGHT=str(transcript.inflight),
    )
    yield child
    child.close()
    print(log.read_text(errors="replace"))


@pytest.mark.parametrize("language, transcript", REPLAYS)
def test_a_helper_library_keeps_to_it(transcript: Transcript, child: Child) -> None:
    Player(transcript, child).play()


def test_no_helper_library_is_left_out() -> None:
    known = {language.check for language in LANGUAGES.values()}
    assert {path.name for path in CHECK.glob("check.*")} <= known


def test_what_is_excluded_exists() -> None:
    names = {transcript.name for transcript in TRANSCRIPTS}
    assert set(EXCLUDED) <= set(LANGUAGES)
    assert {name for language in EXCLUDED for name in excluded(language)} <= names


# --- our own side ---------------------------------------------------------------------


class Ours:
    """A connection that hears a transcript's lines up, and what it should be then."""

    def __init__(self, transcript: Transcript, size: int) -> None:
        handshake = Handshake.AUTO if transcript.protocol >= 2 else Handshake.NONE
        self.connection = Connection(handshake=handshake, inflight=transcript.inflight)
        self.steps = transcript.steps
        self.asked: List[str] = []
        self.names: Names = {}
        self.size = size

    def play(self) -> None:
        for step in self.steps:
            [(kind, value)] = step.items()
            getattr(self, f"hear_{kind}")(value)
            assert self.connection.state is self.state(kind)
            assert list(self.connection.requests) == self.asked

    def state(self, kind: str) -> State:
        if kind == "exit":
            return State.CLOSED
        return State.BUSY if self.asked else State.IDLE

    def hear_down(self, line: Line) -> None:
        line = fill(line, self.names)
        assert json.loads(encode(line)) == line
        if "op" not in line:
            assert self.connection.has_room
            self.connection.request(line["id"])
            self.asked.append(line["id"])

    def hear_up(self, pattern: Line) -> None:
        line = fill(pattern, self.names)
        [event] = self.receive(json.dumps(line))
        if line.get("op") == "hello":
            assert isinstance(event, Hello)
            assert event.inflight == line.get("inflight", 1)
        elif "op" in line:
            assert isinstance(event, Told) and event.op.value == line["op"]
            assert event.fields == line
        else:
            assert isinstance(event, Reply)
            assert event.status.value == line["status"] and event.fields == line
            self.asked.remove(line["id"])

    def hear_any_order(self, patterns: List[Line]) -> None:
        for pattern in reversed(patterns):
            self.hear_up(pattern)

    def hear_stray(self, line: Any) -> None:
        text = line if isinstance(line, str) else json.dumps(line)
        noise = [Noise] if isinstance(line, str) else []
        assert [type(event) for event in self.receive(text)] == noise

    def hear_eof(self, _: bool) -> None:
        pass

    def hear_signal(self, name: str) -> None:
        pass

    def hear_exit(self, code: int) -> None:
        assert self.connection.receive_eof() is None

    def receive(self, line: str) -> List[Event]:
        data = line.encode() + b"\n"
        size = self.size or len(data)
        pieces = [data[at : at + size] for at in range(0, len(data), size)]
        return [event for piece in pieces for event in self.connection.receive(piece)]


@pytest.mark.parametrize("size", [0, 1, 4096])
@pytest.mark.parametrize(
    "transcript", [pytest.param(each, id=each.name) for each in TRANSCRIPTS]
)
def test_our_own_side_keeps_to_it(transcript: Transcript, size: int) -> None:
    if transcript.name == "long" and size == 1:
        size = 100  # a megabyte byte by byte shows nothing more
    Ours(transcript, size).play()


# --- the player -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "pattern, line",
    [
        ({"a": 1}, {"a": 1, "more": 2}),
        ({"a": 1}, {"a": 1.0}),
        ({"a": None}, {}),
        ({"a": {"$one": ["b", None]}}, {}),
        ({"a": {"$any": "string"}}, {"a": ""}),
        ({"a": {"$any": "number"}}, {"a": 0.5}),
        ({"a": {"$any": "list", "$with": "b"}}, {"a": ["a", "abc"]}),
        ({"a": {"$repeat": ["xy", 2]}}, {"a": "xyxy"}),
        ({"a": {"$the": "name"}}, {"a": 1}),
        ({"a": {"$one": ["b", "c"]}}, {"a": "c"}),
        ({"a": [{"b": []}, None]}, {"a": [{"b": []}, None]}),
    ],
)
def test_what_matches(pattern: Line, line: Line) -> None:
    assert is_line(pattern, line, {"name": 1})


@pytest.mark.parametrize(
    "pattern, line",
    [
        ({"a": 1}, {}),
        ({"a": 1}, {"a": 2}),
        ({"a": 1}, {"a": True}),
        ({"a": 0}, {"a": None}),
        ({"a": {"$any": "string"}}, {"a": None}),
        ({"a": {"$any": "string"}}, {}),
        ({"a": {"$any": "number"}}, {"a": True}),
        ({"a": {"$any": "list", "$with": "b"}}, {"a": ["a"]}),
        ({"a": {"$any": "string", "$with": "b"}}, {"a": "a"}),
        ({"a": {"$repeat": ["xy", 2]}}, {"a": "xy"}),
        ({"a": {"$the": "name"}}, {"a": 2}),
        ({"a": {"$one": ["b", "c"]}}, {"a": "d"}),
        ({"a": {"b": 1}}, {"a": {"b": 1, "more": 2}}),
        ({"a": {}}, {"a": []}),
        ({"a": [1]}, {"a": [1, 1]}),
    ],
)
def test_what_does_not_match(pattern: Line, line: Line) -> None:
    assert not is_line(pattern, line, {"name": 1})

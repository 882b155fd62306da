"""``celery linepool init``: a helper library and a worker that runs."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Tuple

import click

from .command import shown

SDK = Path(__file__).parent.parent / "sdk"


@dataclass(frozen=True)
class Start:
    """What a language begins with: files in the folder, by what they are copies of."""

    files: Dict[str, str]
    command: Tuple[str, ...]
    #: What has to be done once, before the command works.
    build: Tuple[str, ...] = ()


STARTS = {
    "ruby": Start(
        {"linepool.rb": "linepool.rb", "worker.rb": "example/worker.rb"},
        ("ruby", "worker.rb"),
    ),
    "node": Start(
        {
            "linepool.cjs": "linepool.cjs",
            "linepool.mjs": "linepool.mjs",
            "worker.mjs": "example/worker.mjs",
        },
        ("node", "worker.mjs"),
    ),
    "php": Start(
        {"linepool.php": "linepool.php", "worker.php": "example/worker.php"},
        ("php", "worker.php"),
    ),
    "go": Start(
        {
            "linepool/linepool.go": "linepool.go",
            "linepool/check.go": "check/check.go",
            "main.go": "example/main.go",
            "go.mod": "example/go.mod",
        },
        ("./worker",),
        ("go", "build", "-o", "worker", "."),
    ),
    "python": Start(
        {"linepool.py": "linepool.py", "worker.py": "example/worker.py"},
        ("python3", "worker.py"),
    ),
    "perl": Start(
        {"Linepool.pm": "Linepool.pm", "worker.pl": "example/worker.pl"},
        ("perl", "worker.pl"),
    ),
    "sh": Start(
        {"linepool.sh": "linepool.sh", "worker.sh": "example/worker.sh"},
        ("sh", "worker.sh"),
    ),
}


@click.command()
@click.argument("language", type=click.Choice(list(STARTS)))
@click.argument("folder", default=".", type=click.Path(file_okay=False, path_type=Path))
@click.option("--force", is_flag=True, help="Overwrite what is there.")
def init(language: str, folder: Path, force: bool) -> None:
    """Put the helper library of a language and an example worker into FOLDER."""
    start = STARTS[language]
    there = [name for name in start.files if (folder / name).exists()]
    if there and not force:
        raise click.UsageError(
            f"{', '.join(there)} in {folder} would be overwritten; --force does"
        )
    for name, source in start.files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(SDK / source, target)
        click.echo(f"wrote {target}")
    click.echo(_next(start, folder))


def _next(start: Start, folder: Path) -> str:
    first: Tuple[str, ...] = () if folder == Path(".") else ("cd", str(folder))
    command = shown(start.command)
    tools = "celery linepool"
    lines = [
        *(shown(step) for step in (first, start.build) if step),
        f"{tools} run example.add 1 2 -- {command}",
        f"{tools} check -- {command}",
        "celery -A app worker -P linepool",
    ]
    return "\n".join(
        [
            "",
            "Next:",
            *(f"    {line}" for line in lines),
            "",
            "The worker needs this in the settings of the Celery app, here app.py:",
            f"    app.conf.linepool_command = {list(start.command)!r}",
        ]
    )

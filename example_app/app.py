"""The Celery app of the example. None of its tasks is written in Python.

celery -A example_app.app worker -P celery_linepool:LinePool -c 4
"""

from __future__ import annotations

import os
from pathlib import Path

from celery import Celery

from example_app.embedded import embedded

ROOT = Path(__file__).resolve().parent.parent
CHILDREN = ROOT / "example_app" / "children"
COMMANDS = {
    "ruby": ["ruby", f"{CHILDREN}/worker.rb"],
    "node": ["node", f"{CHILDREN}/worker.js"],
    "php": ["php", f"{CHILDREN}/worker.php"],
    "perl": ["perl", f"{CHILDREN}/worker.pl"],
    "sh": ["sh", f"{CHILDREN}/worker.sh"],
    # Compiles at its first start. In production run what `go build` made instead.
    "go": ["go", "run", f"{CHILDREN}/worker.go", f"{CHILDREN}/billing.go"],
}

app = Celery(
    "example_app",
    broker=os.environ.get("CELERY_BROKER_URL"),
    backend=os.environ.get("CELERY_RESULT_BACKEND"),
)
if "EXAMPLE_FOLDER" in os.environ:  # a folder instead of servers
    app.conf.update(embedded(os.environ["EXAMPLE_FOLDER"]))

app.conf.linepool_command = COMMANDS[os.environ.get("EXAMPLE_LANGUAGE", "ruby")]

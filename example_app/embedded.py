"""A broker and a result backend without any server: files in a folder.

For trying things out on one machine. A message is gone once it is delivered, so a
task in flight is lost with its worker, whatever `acks_late` says.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, Union

#: Seconds between two looks into the folder; kombu's default is a whole one.
POLLING_INTERVAL = 0.02


def embedded(folder: Union[str, Path]) -> Dict[str, Any]:
    """The settings for it. The folders are made here: nobody else does."""
    root = Path(folder).resolve()
    queue, taken, control, results = (
        root / name for name in ("queue", "taken", "control", "results")
    )
    for path in (queue, taken, control, results):
        path.mkdir(parents=True, exist_ok=True)
    return {
        "broker_url": "filesystem://",
        "broker_transport_options": {
            # One folder both ways: what is sent is there to be read.
            "data_folder_in": str(queue),
            "data_folder_out": str(queue),
            # Otherwise a message is taken by moving it to the system's temporary
            # folder, which may be another file system: a copy, and no atomic move.
            "store_processed": True,
            "processed_folder": str(taken),
            "control_folder": str(control),
            "polling_interval": POLLING_INTERVAL,
        },
        "result_backend": f"file://{results}",
        # With a transport like this Celery acknowledges messages only when it has been
        # given another one, or after two seconds. A limit to those that it may hold
        # would let it wait for one that it may not have.
        "worker_prefetch_multiplier": 0,
    }

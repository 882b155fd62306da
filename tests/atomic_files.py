"""Whole files only, for kombu's filesystem broker and Celery's file backend.

Both create a file under its final name and write it afterwards. A reader that comes
in between gets an empty message: the worker ends with "Unrecoverable error:
JSONDecodeError". The 50 polls a second of our tests meet that moment every few dozen
runs, so worker and test import this, and write beside the target, then rename.
"""

from __future__ import annotations

import os
import time
import uuid
from pathlib import Path
from typing import Any

from celery.backends.filesystem import FilesystemBackend
from kombu.transport.filesystem import Channel
from kombu.utils.encoding import ensure_bytes
from kombu.utils.json import dumps


def put(channel: Channel, queue: str, payload: Any, **_: Any) -> None:
    name = f"{round(time.monotonic() * 1000)}_{uuid.uuid4()}.{queue}.msg"
    # Beside, not inside: an older kombu looks for the queue anywhere in a name.
    draft = Path(channel.control_folder, name)
    draft.write_bytes(ensure_bytes(dumps(payload)))
    os.rename(draft, Path(channel.data_folder_out, name))


def set_result(backend: FilesystemBackend, key: bytes, value: Any) -> None:
    target = backend._filename(key)
    draft = target + b"." + uuid.uuid4().hex.encode()
    Path(os.fsdecode(draft)).write_bytes(ensure_bytes(value))
    os.rename(draft, target)


Channel._put = put
FilesystemBackend.set = set_result

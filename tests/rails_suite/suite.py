"""The worker of Rails' integration tests."""

import os
from pathlib import Path

from celery import Celery

app = Celery("suite", broker=os.environ["CELERY_BROKER_URL"])
app.conf.task_ignore_result = True
app.conf.linepool_command = ["ruby", "-W0", str(Path(__file__).parent / "child.rb")]
app.conf.linepool_cwd = os.environ["DUMMY_APP"]
app.conf.linepool_handshake = "required"

"""Serves functions of Celery's own t/integration/tasks.py: FOLDER NAME..."""

import importlib
import sys

import linepool

sys.path.insert(0, sys.argv[1])
tasks = importlib.import_module("t.integration.tasks")

for name in sys.argv[2:]:
    linepool.task(f"t.integration.tasks.{name}")(getattr(tasks, name).run)

linepool.run()

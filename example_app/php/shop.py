"""The Celery application of the shop: which command to run, and how."""

from celery import Celery

app = Celery("shop", broker="redis://localhost", backend="redis://localhost")
app.conf.linepool_command = ["bin/console", "linepool:work"]
# The console has stdout open before the command runs: tasks come and go elsewhere.
app.conf.linepool_channel = "fd"
# What dies with its child is delivered again, and charged once all the same.
app.conf.task_acks_late = True
app.conf.task_reject_on_worker_lost = True

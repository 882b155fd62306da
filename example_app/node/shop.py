"""The Celery application of the shop: which command to run, and how."""

from celery import Celery

app = Celery("shop", broker="redis://localhost", backend="redis://localhost")
app.conf.linepool_command = ["node", "worker.mjs"]
# Tasks at once in one child; the lower of this and of run({ inflight }) counts.
app.conf.linepool_inflight = 16
# What dies with its child is delivered again, and charged once all the same.
app.conf.task_acks_late = True
app.conf.task_reject_on_worker_lost = True

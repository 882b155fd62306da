"""Ends with its channel, though a task takes longer."""

import os

from good import Child


class Bad(Child):
    def end(self):
        tasks = [request.payload["task"] for request in list(self.running.values())]
        if {"linepool.check.sleep", "linepool.check.publish"} & set(tasks):
            os._exit(0)


Bad().run()

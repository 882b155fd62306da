"""Starts a process that outlives it."""

import subprocess

from good import Child


class Bad(Child):
    def set_signals(self):
        super().set_signals()
        subprocess.Popen(["sleep", "30"], stdin=subprocess.DEVNULL)


Bad().run()

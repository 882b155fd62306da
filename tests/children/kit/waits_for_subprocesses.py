"""Waits at its end for what its tasks have started."""

import subprocess

from good import Child


class Bad(Child):
    def do_spawn(self, request):
        self.process = subprocess.Popen(["sleep", "30"], stdin=subprocess.DEVNULL)
        return self.process.pid

    def end(self):
        super().end()
        if hasattr(self, "process"):
            self.process.wait()


Bad().run()

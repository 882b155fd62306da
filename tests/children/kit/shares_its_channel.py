"""Lets its subprocesses inherit the channel."""

import os
import subprocess

from good import Child


class Bad(Child):
    def do_spawn(self, request):
        os.set_inheritable(self.output, True)
        return subprocess.Popen(["sleep", "30"], close_fds=False).pid


Bad().run()

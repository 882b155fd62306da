"""Trusts that a write takes all of a line."""

import os

from good import Child


class Bad(Child):
    def write_line(self, line):
        with self.lock:
            os.set_blocking(self.output, False)
            os.write(self.output, line)


Bad().run()

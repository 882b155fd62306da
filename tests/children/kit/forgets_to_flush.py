"""Leaves what it says in a buffer until the end."""

import os

from good import Child


class Bad(Child):
    said = b""

    def write_line(self, line):
        self.said += line

    def end(self):
        os.write(self.output, self.said)


Bad().run()

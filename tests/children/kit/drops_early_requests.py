"""Throws away what was sent while it booted."""

import os
import select

from good import Child


class Bad(Child):
    def say_hello(self):
        if self.protocol >= 2 and select.select([self.input], [], [], 1)[0]:
            os.read(self.input, 65536)
        super().say_hello()


Bad().run()

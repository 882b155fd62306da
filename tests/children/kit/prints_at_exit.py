"""Leaves stdout to the application, which fills its buffer."""

import sys

from good import Child


class Bad(Child):
    def take_channel(self):
        super().take_channel()
        if self.input != 3:
            sys.stdout = open(self.output, "w", closefd=False)

    def do_print(self, request, text):
        print(text)


Bad().run()

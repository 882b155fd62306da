"""Leaves stdout to the application."""

import os

from good import Child


class Bad(Child):
    def take_channel(self):
        super().take_channel()
        if self.input != 3:
            os.dup2(self.output, 1)


Bad().run()

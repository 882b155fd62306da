"""Knows no longest line."""

from good import Child


class Bad(Child):
    def __init__(self):
        super().__init__()
        self.max_line = 2**30


Bad().run()

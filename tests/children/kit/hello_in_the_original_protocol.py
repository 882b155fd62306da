"""Says hello to a worker that knows none."""

from good import Child


class Bad(Child):
    def __init__(self):
        super().__init__()
        self.protocol = 2


Bad().run()

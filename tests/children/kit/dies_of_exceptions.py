"""Dies of an exception of a task."""

import os

from good import Child


class Bad(Child):
    def error(self, exc):
        os._exit(1)


Bad().run()

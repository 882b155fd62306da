"""Ends with its channel, whatever it has begun."""

import os

from good import Child


class Bad(Child):
    def end(self):
        os._exit(0)


Bad().run()

"""Lets exit end the child."""

import os

from good import Child


class Bad(Child):
    def do_exit(self, request, code):
        os._exit(code)


Bad().run()

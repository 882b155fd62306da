"""Speaks over stdin and stdout, whatever LINEPOOL_CHANNEL says."""

import os

from good import Child


class Bad(Child):
    def take_channel(self):
        os.environ.pop("LINEPOOL_CHANNEL", None)
        super().take_channel()


Bad().run()

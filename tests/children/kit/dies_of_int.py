"""Ends at SIGINT, as Ctrl-C sends it."""

import signal

from good import Child


class Bad(Child):
    def set_signals(self):
        super().set_signals()
        signal.signal(signal.SIGINT, signal.SIG_DFL)


Bad().run()

"""Ends at SIGTERM, whatever it has begun."""

import signal

from good import Child


class Bad(Child):
    def set_signals(self):
        super().set_signals()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


Bad().run()

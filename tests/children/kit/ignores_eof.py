"""Does not end with its channel."""

import threading

from good import Child


class Bad(Child):
    def end(self):
        super().end()
        threading.Event().wait()

    def leave(self):
        self.end = lambda: None
        super().leave()


Bad().run()

"""Says that it takes many requests, and serves one after the other."""

import threading

from good import Child


class Bad(Child):
    one = threading.Lock()

    def serve(self, request):
        with self.one:
            super().serve(request)


Bad().run()

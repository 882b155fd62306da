"""Holds the lock of the channel while a task sleeps."""

from good import Child


class Bad(Child):
    inflight = 1

    def do_sleep(self, request, seconds):
        with self.lock:
            return super().do_sleep(request, seconds)


Bad().run()

"""Calls a retry a throttle."""

from good import Child


class Bad(Child):
    def do_end(self, request, status, seconds):
        super().do_end(request, "throttled" if status == "retry" else status, seconds)


Bad().run()

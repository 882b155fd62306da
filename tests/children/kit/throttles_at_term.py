"""Throttles what it has not begun when SIGTERM comes."""

from good import Child


class Bad(Child):
    def reply(self, request, fields):
        if fields["status"] == "restart":
            fields = {"status": "throttled", "retry_after_secs": 0}
        super().reply(request, fields)


Bad().run()

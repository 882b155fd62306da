"""Replies twice to each request."""

from good import Child


class Bad(Child):
    def reply(self, request, fields):
        super().reply(request, fields)
        super().reply(request, fields)


Bad().run()

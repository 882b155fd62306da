"""Writes no events while a task runs."""

from good import Child


class Bad(Child):
    def event(self, request, op, **fields):
        if op == "publish":
            super().event(request, op, **fields)


Bad().run()

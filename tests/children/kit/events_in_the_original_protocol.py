"""Writes events to a worker that knows none."""

from good import Child


class Bad(Child):
    def event(self, request, op, **fields):
        self.write({"op": op, "id": request.id, **fields})


Bad().run()

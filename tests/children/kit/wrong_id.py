"""Replies to an id in small letters."""

from good import Child


class Bad(Child):
    def reply(self, request, fields):
        self.running.pop(request.id)
        self.write({"id": request.id.lower(), **fields})


Bad().run()

"""Reports progress after the reply."""

from good import Child


class Bad(Child):
    def reply(self, request, fields):
        super().reply(request, fields)
        if self.protocol >= 2:
            self.write({"op": "progress", "id": request.id, "meta": {}})


Bad().run()

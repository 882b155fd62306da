"""Leaves out the id, as a child of the original protocol may."""

from good import Child


class Bad(Child):
    inflight = 1

    def encode(self, fields):
        if "status" in fields:
            fields = {name: fields[name] for name in fields if name != "id"}
        return super().encode(fields)


Bad().run()

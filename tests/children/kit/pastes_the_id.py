"""Puts the id into the reply as it is, without JSON."""

from good import Child


class Bad(Child):
    def encode(self, fields):
        line = super().encode({**fields, "id": "THE-ID"} if "id" in fields else fields)
        return line.replace(b"THE-ID", fields.get("id", "").encode(), 1)


Bad().run()

"""Takes an id of digits for a number."""

from good import Child


class Bad(Child):
    def encode(self, fields):
        if fields.get("id", "").isdigit():
            fields["id"] = int(fields["id"])
        return super().encode(fields)


Bad().run()

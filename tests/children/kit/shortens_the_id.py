"""Has room for 255 letters of an id."""

from good import Child


class Bad(Child):
    def encode(self, fields):
        return super().encode(
            {**fields, "id": fields["id"][:255]} if "id" in fields else fields
        )


Bad().run()

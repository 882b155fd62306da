"""Says on the channel what it has done."""

from good import Child


class Bad(Child):
    def reply(self, request, fields):
        super().reply(request, fields)
        self.write_line(b"Done.\n")


Bad().run()

"""Writes NaN into what it logs."""

from good import Child


class Bad(Child):
    def event(self, request, op, **fields):
        super().event(request, op, load="THE-LOAD", **fields)

    def write_line(self, line):
        super().write_line(line.replace(b'"THE-LOAD"', b"NaN"))


Bad().run()

"""Writes Latin 1 into what it logs."""

from good import Child


class Bad(Child):
    def event(self, request, op, **fields):
        super().event(request, op, who="J\u00fcrgen", **fields)

    def write_line(self, line):
        super().write_line(line.replace("J\u00fcrgen".encode(), b"J\xfcrgen"))


Bad().run()

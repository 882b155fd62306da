"""Reads lines of up to 64 KB, as some scanners do."""

from good import Child


class Bad(Child):
    def decode(self, line):
        return super().decode(line[:65536])


Bad().run()

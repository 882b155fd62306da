"""Takes every line for ASCII."""

from good import Child


class Bad(Child):
    def decode(self, line):
        return super().decode(line.decode("ascii", "replace"))


Bad().run()

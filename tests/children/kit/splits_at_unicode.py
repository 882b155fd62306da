"""Takes U+2028 for the end of a line, as many a library does."""

from good import Child


class Bad(Child):
    def messages(self):
        for message in super().messages():
            yield message

    def decode(self, line):
        return super().decode(line.decode().splitlines()[0])


Bad().run()

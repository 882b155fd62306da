"""Prints before its hello."""

from good import Child


class Bad(Child):
    def say_hello(self):
        if self.protocol >= 2:
            self.write_line(b"Booting ...\n")
        super().say_hello()


Bad().run()

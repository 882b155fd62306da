"""Dies of a cancel of what has ended."""

from good import Child


class Bad(Child):
    def take_cancel(self, message):
        self.running[message["id"]].cancelled.set()


Bad().run()

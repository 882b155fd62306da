"""Names the feature cancel and does nothing."""

from good import Child


class Bad(Child):
    def take_cancel(self, message):
        pass


Bad().run()

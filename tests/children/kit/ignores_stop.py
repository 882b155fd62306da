"""Names the feature stop and does nothing."""

from good import Child


class Bad(Child):
    def take_stop(self, message):
        pass


Bad().run()

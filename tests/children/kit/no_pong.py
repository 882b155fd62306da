"""Names the feature ping and does nothing."""

from good import Child


class Bad(Child):
    def take_ping(self, message):
        pass


Bad().run()

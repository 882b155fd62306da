"""Dies of a field that it does not know."""

from good import Child


class Bad(Child):
    def take_request(self, message):
        assert set(message) == {"id", "payload"}
        super().take_request(message)


Bad().run()

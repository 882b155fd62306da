"""Dies of an op that it does not know."""

from good import Child


class Bad(Child):
    def take(self, message):
        getattr(self, "take_" + message.get("op", "request"))(message)


Bad().run()

"""Says in its hello that it speaks another protocol."""

from good import Child


class Bad(Child):
    def hello(self):
        return {**super().hello(), "protocol": "2"}


Bad().run()

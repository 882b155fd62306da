"""Says hello again after its first task."""

from good import Child


class Bad(Child):
    again = True

    def reply(self, request, fields):
        super().reply(request, fields)
        if self.again and self.protocol >= 2:
            self.again = False
            self.say_hello()


Bad().run()

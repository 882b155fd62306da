"""Says hello when it has its first task behind it."""

from good import Child


class Bad(Child):
    greeted = False

    def say_hello(self):
        pass

    def reply(self, request, fields):
        super().reply(request, fields)
        if not self.greeted:
            self.greeted = True
            super().say_hello()


Bad().run()

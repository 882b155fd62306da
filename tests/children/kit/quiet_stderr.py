"""Keeps the half of what goes to stderr."""

from good import Child


class Bad(Child):
    def do_stderr(self, request, count):
        super().do_stderr(request, count // 2)


Bad().run()

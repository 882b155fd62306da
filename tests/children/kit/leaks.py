"""Keeps a little of each task."""

from good import Child


class Bad(Child):
    kept = []

    def do_echo(self, request, *args, **kwargs):
        self.kept.append("x" * 5000)
        return super().do_echo(request, *args, **kwargs)


Bad().run()

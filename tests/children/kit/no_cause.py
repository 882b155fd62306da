"""Tells an error without what caused it."""

from good import Child


class Bad(Child):
    def error(self, exc):
        exc.__cause__ = exc.__context__ = None
        return super().error(exc)


Bad().run()

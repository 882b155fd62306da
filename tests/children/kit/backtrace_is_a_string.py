"""Sends its backtrace as one string."""

from good import Child


class Bad(Child):
    def error(self, exc):
        fields = super().error(exc)
        return {**fields, "backtrace": "\n".join(fields["backtrace"])}


Bad().run()

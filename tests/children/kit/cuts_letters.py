"""Cuts long messages in the middle of a letter."""

from good import Child


class Bad(Child):
    def encode(self, fields):
        message = fields.get("message", "").encode()
        if len(message) <= 5000:
            return super().encode(fields)
        line = super().encode({**fields, "message": "THE-MESSAGE", "backtrace": []})
        return line.replace(b"THE-MESSAGE", message[:5001])


Bad().run()

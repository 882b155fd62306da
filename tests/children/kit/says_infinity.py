"""Writes what is infinite as Infinity."""

import json

from good import Child


class Bad(Child):
    def decode(self, line):
        return json.loads(line, parse_int=number)

    def encode(self, fields):
        line = json.dumps(fields).encode()
        return line + b"\n" if b"Infinity" in line else super().encode(fields)


def number(digits):
    return int(digits) if len(digits) < 300 else float(digits)


Bad().run()

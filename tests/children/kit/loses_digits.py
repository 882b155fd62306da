"""Reads large integers as doubles."""

import json

from good import Child


class Bad(Child):
    def decode(self, line):
        return json.loads(line, parse_int=number)


def number(digits):
    return int(digits) if len(digits) < 17 else int(float(digits[:300]))


Bad().run()

"""Takes the end of what a read gives for the end of a line."""

import os
import select

from good import Child


class Bad(Child):
    def messages(self):
        while True:
            ready, _, _ = select.select([self.input, self.wake_out], [], [])
            if self.wake_out in ready:
                os.read(self.wake_out, 100)
                yield None
                continue
            data = os.read(self.input, 65536)
            if not data:
                return
            yield from map(self.decode, data.splitlines())


Bad().run()

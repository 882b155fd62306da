"""Does not wait for the answer to what it publishes."""

from good import Child


class Bad(Child):
    inflight = 1

    def do_publish(self, request, task, when):
        self.event(request, "publish", seq=1, task=task, args=[7], when=when)


Bad().run()

"""Says that it takes many requests, and serves one after the other."""

import queue
import threading
import time

from good import Child


class Bad(Child):
    def __init__(self):
        super().__init__()
        self.waiting = queue.Queue()
        threading.Thread(target=self.work, daemon=True).start()

    def work(self):
        while True:
            super().serve(self.waiting.get())

    def serve(self, request):
        pass

    def take_request(self, message):
        super().take_request(message)
        if message["id"] in self.running:
            self.waiting.put(self.running[message["id"]])

    def end(self):
        super().end()
        while self.running:
            time.sleep(0.01)


Bad().run()

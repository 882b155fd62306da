"""Does not count retries."""

from good import Child


class Bad(Child):
    def do_context(self, request):
        return {**super().do_context(request), "retries": 0}


Bad().run()

"""Makes a text of every argument."""

from good import Child


class Bad(Child):
    def do_echo(self, request, *args, **kwargs):
        texts = {name: str(value) for name, value in kwargs.items()}
        return {"args": [str(arg) for arg in args], "kwargs": texts}


Bad().run()

"""Makes empty lists of empty objects."""

from good import Child


class Bad(Child):
    def do_echo(self, request, *args, **kwargs):
        return {
            "args": [arg or [] if arg == {} else arg for arg in args],
            "kwargs": kwargs,
        }


Bad().run()

import linepool  # first: from here on stdout is stderr


@linepool.task("example.add")
def add(a, b, round_to=None):
    return a + b if round_to is None else round(a + b, round_to)


linepool.run(inflight=4)

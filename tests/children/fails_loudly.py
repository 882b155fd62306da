# Fails each task with an error, a log line and a line on stderr that would steer a
# terminal; "env" succeeds with its arguments and its environment instead.
import json
import os
import sys

LOUD = "\x1b]0;owned\x07\x1b[31m\x9bred\u202edlo\u2028line"


def say(**fields):
    print(json.dumps(fields), flush=True)


say(op="hello", protocol=2)
for line in sys.stdin:
    request = json.loads(line)
    if request["payload"]["task"] == "env":
        result = {"args": sys.argv, "env": dict(os.environ)}
        say(id=request["id"], status="ok", result=result)
        continue
    say(op="log", id=request["id"], level="info", message=LOUD)
    print(LOUD, file=sys.stderr, flush=True)
    print(LOUD, flush=True)
    say(
        id=request["id"],
        status=request["payload"]["task"],
        type=LOUD,
        message=LOUD,
        backtrace=[LOUD],
        retry_after_secs=0,
    )

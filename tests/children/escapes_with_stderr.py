# Leaves a grandchild in a session of its own, out of reach of a kill of the group,
# that holds on to stderr until its own stdin ends; its pid is the last line there.
import os
import subprocess
import sys

sys.stdin.readline()
grandchild = subprocess.Popen(
    ["sleep", "600"],
    stdin=subprocess.DEVNULL,
    stdout=subprocess.DEVNULL,
    start_new_session=True,
)
os.write(2, b"%d\n" % grandchild.pid)
os._exit(0)

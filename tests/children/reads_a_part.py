# Reads ten bytes of the request, says so on stderr and ends.
import os

os.read(0, 10)
os.write(2, b"ten bytes\n")

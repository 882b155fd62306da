# Writes 24 MB of lines to stderr as fast as it can, then a last line, and ends.
line = "x" * 99 + "\n"
block = line * 1000
240.times { $stderr.write(block) }
$stderr.write("the last line\n")

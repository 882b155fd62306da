# Neither the end of its stdin nor SIGTERM ends it. Its first line on stderr says that
# it is ready for both.
trap("TERM") { }
$stderr.puts("ready")
$stderr.flush
$stdin.read
loop { sleep(60) }

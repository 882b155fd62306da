# Reads a request and ends without a word, as after `exit` in the user's code.
$stdin.gets
exit 3

# Ends without having read anything of its stdin.
exit 0

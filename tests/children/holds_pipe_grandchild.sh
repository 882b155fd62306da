# Leaves a grandchild behind that holds all of its pipes, and names it on stderr.
sleep 600 &
echo "$!" >&2
read -r request
exit 0

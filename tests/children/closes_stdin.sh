# Closes its stdin but lives on; its line on stderr says that it has done so.
exec 0<&-
echo closed >&2
exec sleep 600

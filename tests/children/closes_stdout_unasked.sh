# Closes its stdout before anything was asked, and lives on.
exec 1>&-
exec sleep 600

# An application that does not boot.
warn "config/database.yml is missing"
exit 1

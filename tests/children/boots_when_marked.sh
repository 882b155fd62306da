# An application that does not boot while a file is missing: the first argument is the
# file, the others are the application.
if [ ! -e "$1" ]; then
    echo "$1 is missing" >&2
    exit 1
fi
shift
exec "$@"

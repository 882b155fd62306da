#!/bin/sh
# Gives the children of running workers a new release of their code, without losing a task.
#
#     rolling.sh RELEASE CURRENT [celery linepool reset's own options ...]
#
# RELEASE is the folder of the new code, CURRENT the symbolic link that linepool_cwd names.
# New children boot one by one; if they do not, the old ones stay and the link goes back.
# CELERY is the command that asks the workers (celery -A app); WAIT is how long, in
# seconds, the old children may take for their tasks and the new ones to boot (600).
set -eu

[ $# -ge 2 ] || { sed -n '2,10s/^# \{0,1\}//p' "$0" >&2; exit 64; }
release=$(cd "$1" && pwd -P)
current=$2
shift 2
old=$(readlink -f "$current")

point_to() {
    ln -sfn "$1" "$current.new"
    mv -T "$current.new" "$current" # at once: there is no moment without a link
}

point_to "$release"
code=0
# shellcheck disable=SC2086 # several words
${CELERY:-celery -A app} linepool reset --wait "${WAIT:-600}" "$@" || code=$?
# 75: it goes on, only a long task is not finished yet.
if [ "$code" -ne 0 ] && [ "$code" -ne 75 ]; then
    point_to "$old"
    echo "$current is $old again" >&2
fi
exit "$code"

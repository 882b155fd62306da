# shellcheck shell=sh disable=SC2154
# The tasks that the worker's check asks for; linepool.sh loads this file.
#
# In a shell some are what comes closest: nothing hears a cancel while `sleep` runs, what
# `print` prints is its result, and the cause of `fail` is the line before the last.

linepool_check_echo() {
    linepool_return "{\"args\":$linepool_args,\"kwargs\":$linepool_kwargs}"
}

linepool_check_sleep() {
    sleep "$1"
    linepool_return "$1"
}

linepool_check_fail() {
    printf 'the cause\n%s\n' "$1" >&2
    return 1
}

linepool_check_end() {
    case $1 in
        retry) linepool_retry "$2" ;;
        throttled) linepool_throttle "$2" ;;
        rejected) linepool_reject ;;
        ignored) linepool_ignore ;;
    esac
    printf 'no status of a task: %s\n' "$1" >&2
    return 1
}

linepool_check_print() {
    printf '%s\n' "$1"
    env echo "$1"
}

linepool_check_stderr() {
    printf "%${1}s" '' | tr ' ' x >&2
}

linepool_check_big() {
    printf "%${1}s" '' | tr ' ' x
}

linepool_check_context() {
    linepool_return "{\"id\":$(linepool_string "$linepool_id"),\"retries\":$linepool_retries,
        \"deadline\":${linepool_deadline:-null}}"
}

linepool_check_events() {
    n=0
    while [ "$n" -lt "$1" ]; do
        n=$((n + 1))
        linepool_progress "{\"step\":$n}"
    done
    linepool_log warning checked
    linepool_return "$1"
}

linepool_check_publish() {
    linepool_publish "$2" "$1" '[7]'
}

linepool_check_spawn() {
    sleep 30 >/dev/null 2>&1 3<&- 4>&- &
    linepool_return $!
}

for linepool__check in echo sleep fail end print stderr big context events publish spawn; do
    linepool_task "linepool.check.$linepool__check" "linepool_check_$linepool__check"
done
linepool_task linepool.check.exit exit

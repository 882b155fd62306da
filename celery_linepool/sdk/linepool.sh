# shellcheck shell=sh disable=SC1090,SC2016
# Serves Celery tasks to a celery-linepool worker.
#
#     . ./linepool.sh
#
#     charge() { # AMOUNT, currency=EUR
#         linepool_progress '{"step": "charging"}'
#         curl --fail --silent "https://pay/$1/${kw_currency-EUR}" || linepool_retry 60
#     }
#     linepool_task billing.charge charge
#     linepool_run
#
# This file needs a POSIX shell, awk, tail, cut, and a tee that can write to /dev/fd; copy
# it. Source it before what may print: it turns stdout into stderr.
#
# A task is a function or any other command, and runs in a subshell. Its arguments are its
# parameters and, by keyword, variables kw_NAME: strings as they are, all else as JSON. What
# it prints is its result, a string, or null if that is nothing. It has failed if it exits
# with another code than 0; the last lines of its stderr are the error's message then. It
# finds $linepool_id, $linepool_name, $linepool_retries, $linepool_deadline (seconds since
# 1970, when the child is killed, or empty), and as JSON $linepool_args, $linepool_kwargs and
# $linepool_meta. `set -e` holds in a task if it did when linepool_run was called.
#
# A shell hears nothing while it waits for a command, so there is no cancel; and a SIGTERM in
# the instant before it reads is heard when a line or the end of the channel comes. The
# descriptors 3, 4, 8 and 9 are taken. What a task leaves behind has to let go of everything:
# command >log 2>&1 3<&- 4>&- &

if [ "${LINEPOOL_CHANNEL-}" != fd ]; then
    exec 3<&0 4>&1 </dev/null >&2 # commands that read stdin would swallow requests
fi
linepool__protocol=${LINEPOOL_PROTOCOL:-1} linepool__max_line=${LINEPOOL_MAX_LINE:-16777216}
linepool__newline='
'
linepool__mark=$(printf '\001linepool\001') linepool__tasks=$linepool__newline
linepool__names='' linepool__leaving='' linepool__line='' linepool__part='' linepool__none='{}'

# linepool_task NAME COMMAND
linepool_task() {
    linepool__tasks="$linepool__tasks$1$linepool__mark$2$linepool__newline"
    linepool__names="$linepool__names${linepool__names:+,}$(linepool_string "$1")"
}

# linepool_run: serves tasks until the worker or SIGTERM ends it, and exits.
linepool_run() {
    case $- in *e*) linepool__errexit=-e ;; *) linepool__errexit=+e ;; esac
    set +e
    [ -z "${LINEPOOL_CHECK-}" ] || . "$LINEPOOL_CHECK/check.sh"
    trap linepool__signal=yes INT # commands would ignore it, too, if it were ignored here
    trap linepool__leave TERM
    [ "$linepool__protocol" -lt 2 ] || linepool__write \
        "{\"op\":\"hello\",\"protocol\":2,\"language\":\"sh\",\"tasks\":[$linepool__names]}"
    while linepool_retries=0 linepool_deadline='' && linepool__read; do
        [ -n "$linepool__op" ] || linepool__serve
    done
    exit 0
}

# linepool_string TEXT: prints it as JSON.
linepool_string() { printf '%s\n' "$1" | linepool__json string; }

# linepool_progress JSON: stores how far the task is.
linepool_progress() { linepool__event "\"op\":\"progress\",\"meta\":$1"; }

# linepool_log LEVEL MESSAGE: LEVEL is debug, info, warning, error or critical.
linepool_log() {
    [ "$linepool__protocol" -ge 2 ] || printf '%s: %s\n' "$1" "$2" >&2
    linepool__event "\"op\":\"log\",\"level\":\"$1\",\"message\":$(linepool_string "$2")"
}

# linepool_publish now|success TASK [ARGS [KWARGS [OPTIONS]]]: sends a task, now or once this
# one has succeeded, and prints its id. The last three are JSON.
linepool_publish() {
    linepool__error='the worker does not speak protocol 2' linepool__task_id='' linepool__seq=''
    if [ "$linepool__protocol" -ge 2 ]; then
        linepool__sent=$(exec sh -c 'echo $$') # one subshell cannot count for the next
        linepool__event "\"op\":\"publish\",\"seq\":$linepool__sent,\"when\":\"$1\",
            \"task\":$(linepool_string "$2"),\"args\":${3:-[]},
            \"kwargs\":${4:-$linepool__none},\"options\":${5:-$linepool__none}" || return
        linepool__error='the channel has ended'
        while [ "$linepool__seq" != "$linepool__sent" ]; do
            linepool__read || { linepool__task_id='' && break; }
        done
    fi
    [ -z "$linepool__task_id" ] || { printf '%s\n' "$linepool__task_id" && return; }
    printf 'not published: %s\n' "$linepool__error" >&2
    return 1
}

# These end the task, by an exit of the subshell that they are called in.
# linepool_return JSON: that is its result.
linepool_return() { linepool__end "\"status\":\"ok\",\"result\":$1"; }
# linepool_retry [SECONDS [MESSAGE]]: runs it again, as long as it may be.
linepool_retry() {
    linepool__end "\"status\":\"retry\",\"retry_after_secs\":${1:-null},
        \"message\":$(linepool_string "${2-}")"
}
# linepool_throttle [SECONDS]: runs it again later, which uses up no retry.
linepool_throttle() { linepool__end "\"status\":\"throttled\",\"retry_after_secs\":${1:-60}"; }
# linepool_reject [true]: rejects its message, or has it delivered again.
linepool_reject() { linepool__end "\"status\":\"rejected\",\"requeue\":${1:-false}"; }
# linepool_ignore: nothing is stored.
linepool_ignore() { linepool__end '"status":"ignored"'; }

linepool__end() { printf '%s%s' "$linepool__mark" "$1" && exit; }
linepool__event() { [ "$linepool__protocol" -lt 2 ] || linepool__reply "$1"; }
linepool__reply() { linepool__write "{\"id\":$linepool__id,$1}"; }
linepool__write() {
    linepool__text=$(printf '%s' "$1" | linepool__json line) || {
        printf 'no JSON, or over %s bytes: %.200s\n' "$linepool__max_line" "$1" >&2
        return 1
    }
    printf '%s\n' "$linepool__text" >&4
}

linepool__leave() {
    linepool__leaving=yes linepool__signal=yes
    # With nothing read it is idle, and the read of some shells would go on.
    [ -n "$linepool__line$linepool__part" ] || exit 0
}

# Reads a line, and makes variables of it. A signal may look like the end of the channel.
linepool__read() {
    linepool__line='' linepool__part=''
    [ -z "$linepool__leaving" ] || return 1
    until linepool__signal='' && IFS= read -r linepool__part <&3; do
        [ -n "$linepool__signal" ] || return 1
        linepool__line=$linepool__line$linepool__part
    done
    linepool__line=$linepool__line$linepool__part
    linepool__op=unknown
    eval "$(printf '%s' "$linepool__line" | linepool__json parse)"
}

linepool__serve() {
    if [ -n "$linepool__leaving" ]; then
        [ "$linepool__protocol" -ge 2 ] && linepool__reply '"status":"restart"' ||
            linepool__reply '"status":"throttled","retry_after_secs":0'
        return
    fi
    # First how it ended, and behind it the last of its stderr.
    linepool__said=$({ linepool__perform 2>&1 >&9 9>&- | (
        trap '' INT TERM
        tee /dev/fd/8 8>&1 >&2 | tail -n 9 | cut -b 1-999
    ); } 9>&1)
    linepool__how=${linepool__said%%"$linepool__newline"*}
    [ "$linepool__how" = replied ] || linepool__reply "\"status\":\"error\",
        \"type\":$(linepool_string "$linepool__how"),
        \"message\":$(linepool_string "${linepool__said#*"$linepool__newline"}")"
}

linepool__perform() {
    trap : INT TERM
    linepool__out=$(
        trap linepool__signal=yes INT TERM
        linepool__command=${linepool__tasks#*"$linepool__newline$linepool_name$linepool__mark"}
        linepool__command=${linepool__command%%"$linepool__newline"*}
        set "$linepool__errexit"
        linepool__call
    )
    linepool__how="exit $?"
    case $linepool__out in
        *"$linepool__mark"*) linepool__out=${linepool__out#*"$linepool__mark"} ;;
        '') linepool__out='"status":"ok"' ;;
        *) linepool__out="\"status\":\"ok\",\"result\":$(linepool_string "$linepool__out")" ;;
    esac
    [ "$linepool__how" = 'exit 0' ] && linepool__reply "$linepool__out" && linepool__how=replied
    echo "$linepool__how"
}

# linepool__json parse|line|string: makes a line shell code, JSON a line, or text JSON. In
# that locale, because it counts bytes.
linepool__json() (
    trap '' INT TERM
    LC_ALL=C exec awk -v mode="$1" -v max="$linepool__max_line" "$linepool__awk"
)
linepool__awk='
BEGIN {
    for (i = 1; i < 256; i++) char[i] = sprintf("%c", i)
    if (mode != "string") RS = char[1] # newlines are white space
    # One by one, and not as alternatives: some awks take the square of the time for those.
    list = "[\302-\337]B \340[\240-\277]B [\341-\354\356\357]BB \355[\200-\237]B"
    list = list " \360[\220-\277]BB [\361-\363]BBB \364[\200-\217]BB"
    gsub(/B/, "[\200-\277]", list)
    split(list, utf8, " ")
}
mode == "string" {
    gsub(/[\\"]/, "\\\\&")
    printf "%s%s", (NR == 1 ? "\"" : "\\n"), plain($0); next
}
{
    gsub(/[\t\n\r]/, " ")
    json = $0
    pieces = split(json, piece, "\"") # every other one lies in a string
    at = k = 1; advance(); value("", 0)
    if (kind != "") fail()
    if (mode == "parse") print_code()
    else if (length(json = plain(json)) <= max) print json
    else fail()
}
END { if (failed) exit 1; if (mode == "string") print "\"" }
function fail() { failed = 1; exit }
# Without control characters; bytes that are no UTF-8 are taken for Latin-1.
function plain(s,    i, rest) {
    if (s ~ /[\001-\037]/) for (i = 1; i < 32; i++) gsub(char[i], sprintf("\\u%04x", i), s)
    rest = s
    for (i in utf8) gsub(utf8[i], " ", rest)
    if (rest ~ /[\200-\377]/)
        for (i = 128; i < 256; i++) gsub(char[i], sprintf("\\u%04x", i), s)
    return s
}
# Moves to the next token, which goes from start to stop; base is what lies before piece[k].
function advance(    c) {
    last = stop
    while ((c = substr(piece[k], at, 1)) == " ") at++
    start = base + at; kind = c
    if (c ~ /[-0-9a-z]/) {
        kind = "literal"
        while (substr(piece[k], at, 1) ~ /[-+.0-9A-Za-z]/) at++
        c = substr(json, start, base + at - start)
        if (c !~ /^(true|false|null|-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?)$/) fail()
    } else if (c != "") at++
    else if (k < pieces) {
        kind = "string"
        do { # a backslash at its end belongs to a quote inside
            base += length(piece[k]) + 1
            c = piece[++k]
            gsub(/\\([\\\/bfnrt]|u[0-9A-Fa-f][0-9A-Fa-f][0-9A-Fa-f][0-9A-Fa-f])/, "", c)
            if (c ~ /\\./ || k >= pieces) fail()
        } while (c ~ /\\$/)
        base += length(piece[k++]) + 1
        at = 1
    }
    stop = base + at - 1
}
function expect(token) { if (kind != token) fail(); advance() }
# Notes the text of the values that do not lie deep.
function value(path, depth,    first, closing, i, key) {
    first = start
    if (closing = kind == "[" ? "]" : kind == "{" ? "}" : "") {
        advance()
        for (i = 0; kind != closing; i++) {
            if (i) expect(",")
            key = i
            if (closing == "}") {
                key = substr(json, start + 1, stop - start - 1)
                expect("string"); expect(":")
            }
            value(depth < 3 ? path "/" key : "", depth + 1)
        }
    } else if (kind != "string" && kind != "literal") fail()
    advance()
    if (depth <= 3) raw[path] = substr(json, first, last - first + 1)
}
function print_code(    i, n, path, field) {
    n = split("_op /op _seq /seq _task_id /task_id _error /error id /id name /payload/task " \
        "args /payload/args kwargs /payload/kwargs meta /payload/meta " \
        "retries /payload/meta/retries deadline /payload/meta/deadline", field, " ")
    for (i = 1; i < n; i += 2)
        if (field[i + 1] in raw) assign("linepool_" field[i], raw[field[i + 1]])
    if (!("/payload" in raw)) return
    print "linepool__op= linepool__id=" quoted(raw["/id"]) "\nlinepool__call() {"
    for (path in raw)
        if (path ~ /^\/payload\/kwargs\/[A-Za-z0-9_]+$/) assign("kw_" substr(path, 17), raw[path])
    printf "\"${linepool__command:?unknown task $linepool_name}\""
    for (i = 0; ("/payload/args/" i) in raw; i++) { printf " "; word(raw["/payload/args/" i]) }
    print "\n}"
}
function assign(name, json) { printf "%s=", name; word(json); print "" }
function quoted(s) { gsub(/\047/, "\047\"\047\"\047", s); return "\047" s "\047" }
# Prints a value as the shell shall see it, piece by piece, for it may be long.
function word(json,    part, n, i, c, code) {
    if (substr(json, 1, 1) != "\"") { printf "%s", quoted(json); return }
    n = split(substr(json, 2, length(json) - 2), part, /\\/)
    printf "%s", quoted(part[1])
    for (i = 2; i <= n; i++) {
        c = substr(part[i], 1, 1)
        if (c == "u") {
            code = hex(part[i])
            if (part[i] ~ /^u[dD][89abAB]..$/ && part[i + 1] ~ /^u[dD][c-fC-F]/)
                code = code * 1024 + hex(part[++i]) - 56613888
            c = encoded(code) substr(part[i], 6)
        } else c = c == "" ? "\\" part[++i] : unescaped(c) substr(part[i], 2)
        printf "%s", quoted(c)
    }
}
function unescaped(c) { return substr("\b\f\n\r\t\"/", index("bfnrt\"/", c), 1) }
function hex(s,    i, n) {
    for (i = 2; i < 6; i++) n = n * 16 + index("0123456789abcdef", tolower(substr(s, i, 1))) - 1
    return n
}
function encoded(n,    top, s) {
    if (n < 128) return n ? char[n] : "" # no shell has NUL
    if (n >= 55296 && n < 57344) n = 65533 # half a pair
    for (top = 64; n >= top; top /= 2) { s = char[128 + n % 64] s; n = int(n / 64) }
    return char[256 - 2 * top + n] s
}
'

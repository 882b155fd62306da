#!/bin/sh
# What plain sh cannot do:
#  - read JSON. Values are cut out by pattern. That is right for the one-line form in
#    which the pool writes, flat rows, and names that come once. Anything beyond it
#    wants jq, or another language; so do lines of more than a few kilobytes, because
#    the time that cutting takes grows with the square of the length.
#  - raise. A task runs in a subshell. When that fails, the error's type is the exit
#    status, and its message and backtrace are what the task wrote to stderr.

# First of all, replies get a descriptor of their own and stdout becomes stderr: no echo
# of any command can come between the replies any more.
exec 3>&1 1>&2

. "${0%/*}/billing.sh"

errors=$(mktemp) || exit
trap 'rm -f "$errors"' EXIT
trap 'exit 143' TERM

field() { # sets $NAME: a string that holds no quotes, commas and braces, or a number
    value=${line#*"\"$1\":"} value=${value#\"} value=${value%%[\",\}]*}
    eval "$1=\$value"
}

number() { # sets $NAME; what is no number must never reach $((...))
    field "$1"
    case $value in
        '' | *[!0-9]*) echo "$1 is no number: $value" >&2 && exit 65 ;;
    esac
}

string() { # sets $NAME: any string, still escaped, so that it fits into a reply
    rest=${line#*"\"$1\":\""} value=
    while part=${rest%%\"*}; do
        value=$value$part rest=${rest#*\"}
        slashes=${part##*[!\\]}
        [ $((${#slashes} % 2)) -eq 1 ] || break # the quote is no escaped one
        value=$value\"
    done
    eval "$1=\$value"
}

escape() { sed 's/\\/\\\\/g; s/"/\\"/g; s/[[:cntrl:]]/ /g'; }

answer() { # a task writes its result to descriptor 4, as JSON
    case $task in
        billing.charge) charge ;;
        example.noisy)
            echo "echo goes to stderr, of the shell and of every command"
            echo '"quiet"' >&4
            ;;
        *) echo "unknown task $task" >&2 && exit 127 ;;
    esac
}

while IFS= read -r line; do
    string id && field task
    if result=$(answer 4>&1 >&2 2>"$errors"); then
        reply="\"status\":\"ok\",\"result\":$result"
    else
        type="exit status $?"
        message=$(tail -n 1 "$errors" | escape)
        backtrace=$(escape <"$errors" | sed 's/.*/"&"/' | paste -s -d , -)
        reply="\"status\":\"error\",\"type\":\"$type\",\"message\":\"$message\""
        reply="$reply,\"backtrace\":[$backtrace]"
    fi
    [ ! -s "$errors" ] || cat "$errors" >&2
    printf '{"id":"%s",%s}\n' "$id" "$reply" >&3
done

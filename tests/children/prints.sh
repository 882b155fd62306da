# Prints once, as a forgotten debugging line does, before its reply.
while IFS= read -r line; do
    id=$(printf '%s\n' "$line" | sed 's/^{"id":"\([^"]*\)".*/\1/')
    mark=$(printf '%s\n' "$line" | sed 's/.*"args":\["\([^"]*\)".*/\1/')
    if [ ! -e "$mark" ]; then
        touch "$mark"
        sleep 600 &
        echo "grandchild $!" >&2
        echo "DEBUG: loading the cache"
    fi
    printf '{"id":"%s","status":"ok","result":%d}\n' "$id" $$
done

# An "ok" that has no result.
while IFS= read -r line; do
    id=$(printf '%s\n' "$line" | sed 's/^{"id":"\([^"]*\)".*/\1/')
    printf '{"id":"%s","status":"ok"}\n' "$id"
done

# Serves one task in its life.
IFS= read -r line
id=$(printf '%s\n' "$line" | sed 's/^{"id":"\([^"]*\)".*/\1/')
printf '{"id":"%s","status":"ok","result":%d}\n' "$id" $$

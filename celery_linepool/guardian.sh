# Kills the process groups of a worker that is gone.
#
# Reads "+ GROUP" and "- GROUP" lines from the worker until its pipe ends, which it
# does however the worker ends, SIGKILL included. Whatever group is left then belongs
# to a child that nobody looks after any more. On a clean stop none is left.
trap '' HUP INT QUIT TERM
groups=' '
while read -r sign group; do
    case $sign in
        +) groups="$groups$group " ;;
        -) case $groups in
               *" $group "*) groups="${groups%% "$group" *} ${groups#* "$group" }" ;;
           esac ;;
    esac
done
for group in $groups; do
    kill -KILL "-$group" 2>/dev/null
done

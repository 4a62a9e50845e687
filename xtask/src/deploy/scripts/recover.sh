# Undoes a deploy that was interrupted on this machine, by a reboot for example. As root.
# $1: how many seconds the previous version has to become healthy.
# Exit status: as in switch.sh.
trap '' HUP INT TERM PIPE
limit=$1
if ! lock; then
    echo "somebody else is deploying to this machine right now"
    exit 5
fi
if [ ! -e $undo/facts ]; then
    echo "there is no unfinished deploy"
    exit 5
fi
. $undo/facts
put_back

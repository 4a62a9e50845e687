# Installs what was copied, restarts, and either keeps the new version or puts the previous one
# back. As root.
# $1: the directory with what was copied. $2: how many seconds the new version has to become
# healthy. $3: how long the router is drained before it is restarted; empty: not at all.
#
# The programs in the kernel go on forwarding between the end of one version and the start of the
# next, also if the next does not start.
#
# All of this is one script on the target, because a router that goes wrong may take the connection
# with it: nothing from here on depends on the other end, and without its word `keep` at the end the
# previous version comes back.
# Lines of standard output are for the person;
# `@draining` says that the router drains as it did before, and `@healthy` asks for the word.
# Exit status: 0 the new version stays; 3 the previous state is back; 4 it is back but something is
# wrong with it; 5 nothing was changed.
set -u
trap '' HUP INT TERM PIPE
directory=$1
limit=$2
drain=${3-}
drained=no
service=pls-router.service
router=/usr/bin/pls-router
reasons=
added=
replaced=
made=
export NO_COLOR=1

indented() { sed 's/^/    /'; }

# Children ignore the signals that this script ignores, all but KILL.
limited() { timeout -s KILL "$@"; }

# Children do not get the lock, or a daemon that one of them starts would hold it.
ctl() { limited "$limit" systemctl "$@" </dev/null 9>&-; }

stage() {
    [ -e "$directory/$1" ] || return 0
    if [ ! -d "${2%/*}" ]; then
        mkdir -m 0755 "${2%/*}" || return
        made="$made ${2%/*}"
    fi
    install -o 0 -g 0 -m "$3" "$directory/$1" "$2.new" || return
    if [ -e "$2" ]; then
        cp -a "$2" "$2.previous.new" || return
        replaced="$replaced $2"
    else
        added="$added $2"
    fi
}

unstage() {
    for file in $replaced $added; do rm -f "$file.new" "$file.previous.new"; done
    rm -f "$router.new" /etc/pls-router/config.toml.new /etc/systemd/system/$service.new
    for folder in $made; do rmdir "$folder" 2>/dev/null; done
}

put() {
    for file in $replaced; do mv -f "$file.previous.new" "$file.previous" && mv -f "$file.new" "$file" || return; done
    # What an older deploy left belongs to no version that could come back now.
    for file in $added; do rm -f "$file.previous" && mv -f "$file.new" "$file" || return; done
}

# One that forwards and that somebody has drain is as healthy as it can be.
healthy() {
    reasons=$(limited 10 "$router" status 2>&1 </dev/null 9>&-) && return
    printf '%s\n' "$reasons" | grep -q '^healthy *yes, draining'
}

# What is drained for the restart takes new connections again. A drain outlives the daemon.
undrain() {
    [ "$drained" = yes ] || return 0
    limited 10 "$router" undrain >/dev/null 2>&1 </dev/null 9>&-
}

wait_healthy() {
    end=$(($(date +%s) + limit))
    until healthy; do
        case $(ctl is-active $service) in
            failed | inactive) reasons="$service has ended
$reasons"; return 1 ;;
        esac
        [ "$(date +%s)" -lt "$end" ] || return 1
        sleep 0.3
    done
}

put_back() {
    echo "putting back what was there before"
    # The previous version is given its time, also where little was given to the new one.
    [ "$limit" -ge 60 ] || limit=60
    # While the unit and the binary are still there.
    if [ "$was_running" = no ]; then
        ctl stop $service
        # After a crash the programs would go on forwarding, with nobody to answer for them.
        limited 10 "$router" detach >/dev/null 2>&1 </dev/null 9>&-
    fi
    [ "$was_enabled" = yes ] || ctl disable $service 2>/dev/null
    wrong=no
    for file in $replaced; do
        # Only what has been replaced by now: the way here may have been a failure halfway.
        [ -e "$file.new" ] || mv -f "$file.previous" "$file" || wrong=yes
    done
    for file in $added; do [ -e "$file.new" ] || rm -f "$file" || wrong=yes; done
    unstage
    ctl daemon-reload || wrong=yes
    if [ "$was_running" = yes ]; then
        ctl restart $service || wrong=yes
        undrain || wrong=yes
        if wait_healthy; then
            echo "the previous version runs again, and its probe answers 200"
        elif [ "$was_healthy" = yes ]; then
            echo "the previous version was healthy before and is not now:"
            printf '%s\n' "$reasons" | indented
            wrong=yes
        else
            echo "the previous version runs again, unhealthy as it was before"
        fi
    else
        echo "pls-router was not running before, and is not now"
    fi
    [ "$wrong" = no ] && exit 3
    exit 4
}

fail() {
    printf '%s\n' "$1"
    if [ -n "${2-}" ]; then printf '%s\n' "$2" | indented; fi
    if [ -n "${started-}" ]; then
        journal=$(journalctl --unit $service --since "@$started" --lines 15 --no-pager --output cat 2>/dev/null)
        if [ -n "$journal" ]; then
            echo "the end of its journal:"
            printf '%s\n' "$journal" | indented
        fi
    fi
    put_back
}

# For root alone: whoever can open it can hold it.
(umask 077 && : >>/run/pls-router-deploy.lock)
chmod 600 /run/pls-router-deploy.lock
exec 9>/run/pls-router-deploy.lock
if ! flock -n 9; then
    echo "somebody else is deploying to this machine right now"
    exit 5
fi

# What was copied goes away with the connection.
if [ ! -e "$directory/pls-router" ]; then
    echo "the copies are gone"
    exit 5
fi
case $(ctl is-active $service) in
    active | activating | reloading) was_running=yes ;;
    *) was_running=no ;;
esac
was_enabled=no
if ctl is-enabled --quiet $service 2>/dev/null; then was_enabled=yes; fi
was_healthy=no
if [ "$was_running" = yes ] && healthy; then was_healthy=yes; fi

if ! { stage pls-router $router 0755 && stage config.toml /etc/pls-router/config.toml 0640 &&
    stage pls-router.service /etc/systemd/system/$service 0644; }; then
    unstage
    exit 5
fi
if [ -n "$drain" ] && [ "$was_running" = yes ] &&
    ! printf '%s\n' "$reasons" | grep -q '^draining '; then
    echo "draining for up to $drain"
    left=$("$router" drain --wait "$drain" 2>&1 </dev/null 9>&-)
    case $? in
        0 | 1) drained=yes ;;
        *)
            echo "what runs there cannot be drained:"
            printf '%s\n' "$left" | indented
            unstage
            exit 5
            ;;
    esac
    # The last lines are the rules.
    printf '%s\n' "$left" | grep -i drained | indented
fi
put || fail "the files could not be put in place"
echo "installed; what was there before is beside it as *.previous"

ctl daemon-reload || fail "systemctl daemon-reload failed"
ctl enable --quiet $service || fail "systemctl enable failed"
started=$(date +%s)
if ! ctl restart $service; then
    healthy
    fail "the new version did not start:" "$reasons"
fi
undrain || fail "the new version cannot be undrained"
echo "restarted; waiting up to $limit s until it is healthy"
wait_healthy || fail "the new version was not healthy within $limit s:" "$reasons"
if printf '%s\n' "$reasons" | grep -q '^draining '; then echo @draining; fi
echo @healthy
[ "$(limited 30 head -n 1)" = keep ] || fail "the machine that asked for this did not answer any more"
exit 0

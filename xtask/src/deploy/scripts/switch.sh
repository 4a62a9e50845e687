# Installs what was copied, restarts, and either keeps the new version or puts the previous one
# back. As root.
# $1: the directory with what is new: files in `tree`, by the paths that they will have, and
# perhaps a package. `previous`: what the last deploy has replaced.
# $2: how many seconds the new version has to become healthy. $3: how many seconds it has to stay
# so. $4: for how long the router is drained before it is restarted; empty: not at all.
# $5: what this is, in words.
#
# The programs in the kernel go on forwarding between the end of one version and the start of the
# next, also if the next does not start.
#
# All of this is one script on the target, because a router that goes wrong may take the connection
# with it: nothing from here on depends on the other end, and without its word `keep` at the end the
# previous version comes back.
# Lines of standard output are for the person;
# `@draining` says that the router drains as it did before, `@go` asks for the word `go`, before
# anything is changed, and `@healthy` for the word `keep`.
# Exit status: 0 the new version stays; 3 the previous state is back; 4 it is back but something is
# wrong with it; 5 nothing was changed.
trap '' HUP INT TERM PIPE
exec 3>&1
source=$1
limit=$2
healthy_for=$3
drain=$4
about=$5
drained=no

word() { [ "$(limited 30 head -n 1)" = "$1" ]; }

unchanged() {
    undrain || echo "it cannot be undrained: \`pls-router undrain\` there"
    for file in $managed; do rm -f "$file.new"; done
    forget
    if [ "$source" = $state/next ]; then mv -T $state/next $state/previous; fi
    exit 5
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
    if [ "$source" = $state/next ]; then mv -T $state/next $state/previous; fi
    put_back
}

put_package() {
    if [ "$(package_state)" != installed ] || ! cmp -s "$source/tree$router" $router ||
        [ "$(package_version)" != "$(dpkg-deb -f "$source/pls-router.deb" Version)" ]; then
        with_dpkg --unpack "$source/pls-router.deb" || return
        # They would hide those of the package.
        rm -f $units/pls-router.service $units/pls-router.socket
    fi
    # In between, so that the package finds it when it starts the service.
    [ ! -e "$source/tree$config" ] || place "$source/tree" $config || return
    [ "$(package_state)" = installed ] || with_dpkg --configure pls-router
}

put_files() {
    for file in $managed; do
        [ ! -e "$source/tree$file" ] || place "$source/tree" "$file" || return
    done
}

if ! lock; then
    echo "somebody else is deploying to this machine right now"
    exit 5
fi
if [ -d $undo ]; then
    echo "an earlier deploy has not been finished"
    exit 5
fi
if [ "$source" = previous ]; then
    rm -rf $state/next
    mv -T $state/previous $state/next 2>/dev/null
    source=$state/next
fi
# What was copied goes away with the connection.
if [ ! -d "$source/tree" ]; then
    echo "the copies are gone"
    exit 5
fi
was_how=$(installed_as)
was_running=no
if is_running; then was_running=yes; fi
was_enabled=no
if ctl is-enabled --quiet $service 2>/dev/null; then was_enabled=yes; fi
was_healthy=no
if [ "$was_running" = yes ] && healthy; then was_healthy=yes; fi
was_pid=$(main_pid)
if ! save; then
    echo "what is there now cannot be kept in $state"
    unchanged
fi

started=$(date +%s)
if [ -n "$drain" ] && [ "$was_running" = yes ] &&
    ! printf '%s\n' "$reasons" | grep -q '^draining '; then
    echo "draining for up to $drain"
    drained=yes
    echo drained=yes >>$undo/facts
    # It says on its standard error how many sessions are left.
    left=$($router drain --wait "$drain" 2>&3 </dev/null 9>&-)
    case $? in
        0 | 1) ;;
        *)
            echo "what runs there cannot be drained"
            unchanged
            ;;
    esac
    # The last lines are the rules.
    printf '%s\n' "$left" | grep -i drained | indented
fi
echo @go
if ! word go; then
    echo "the machine that asked for this did not answer any more"
    unchanged
fi

said=
if [ -e "$source/pls-router.deb" ]; then put_package; else put_files; fi ||
    fail "the new version could not be put in place:" "$said"
echo "installed; what was there before is kept in $state"

ctl daemon-reload || fail "systemctl daemon-reload failed"
ctl enable --quiet $service || fail "systemctl enable failed"
# A package may have restarted it.
if ! restarted && ! ctl restart $service; then
    healthy
    fail "the new version did not start:" "$reasons"
fi
undrain || fail "the new version cannot be undrained"
echo "restarted; waiting up to $limit s until it is healthy"
wait_healthy || fail "the new version was not healthy within $limit s:" "$reasons"
if [ "$healthy_for" -gt 0 ]; then
    echo "healthy; it has to stay so for $healthy_for s"
    end=$(($(now) + healthy_for))
    while [ "$(now)" -lt "$end" ]; do
        sleep 1
        healthy || fail "the new version was healthy, and did not stay so for $healthy_for s:" "$reasons"
    done
fi
if printf '%s\n' "$reasons" | grep -q '^draining '; then echo @draining; fi
echo @healthy
word keep || fail "the machine that asked for this did not answer any more"
rm -rf $state/previous $state/next
if [ "$was_how" = none ]; then forget; else mv -T $undo $state/previous; fi
exit 0

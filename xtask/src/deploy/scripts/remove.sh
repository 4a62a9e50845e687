# Takes pls-router off this machine. As root.
# $1: for how long it is drained before; empty: not at all. $2: `purge`: with the configuration.
# Exit status: 0 it is gone; 5 nothing was changed; 4 not all of it is gone.
trap '' HUP INT TERM PIPE
exec 3>&1
limit=60
drained=no
was_running=no
if ! lock; then
    echo "somebody else is deploying to this machine right now"
    exit 5
fi
how=$(installed_as)
if [ -n "$1" ] && is_running; then
    echo "draining for up to $1"
    left=$($router drain --wait "$1" 2>&3 </dev/null 9>&-)
    case $? in
        0 | 1) printf '%s\n' "$left" | grep -i drained | indented ;;
        *) echo "it cannot be drained"; exit 5 ;;
    esac
    echo @go
    if [ "$(limited 30 head -n 1)" != go ]; then
        drained=yes
        undrain
        exit 5
    fi
fi
wrong=no
said=
ctl disable --now $service 2>/dev/null
if [ -x $router ]; then
    limited 30 $router detach 2>&1 </dev/null 9>&- 3>&- | indented
fi
if [ "$how" = package ]; then
    if [ "$2" = purge ]; then verb=--purge; else verb=--remove; fi
    with_dpkg $verb pls-router || wrong=yes
elif [ "$2" = purge ] && [ "$(package_state)" = config-files ]; then
    with_dpkg --purge pls-router || wrong=yes
fi
for file in $managed; do
    if [ "$2" != purge ] && [ "$file" = $config ]; then continue; fi
    rm -f "$file" || wrong=yes
done
# By name, as it may have been made by hand: /etc/systemd/system/multi-user.target.wants.
ctl daemon-reload || wrong=yes
rm -rf $state
if [ "$2" = purge ]; then
    rm -rf /var/lib/pls-router /run/pls-router /run/pls-router-deploy.lock
    rmdir "${config%/*}" 2>/dev/null
fi
if [ $wrong = yes ]; then
    echo "not all of it could be removed:"
    printf '%s\n' "$said" | indented
    exit 4
fi
exit 0

# Reads what is installed, as root, and changes nothing. $1: the directory with what was copied.
# What is new lies in `tree`, by the paths that it will have.
tree=$1/tree

# Every file of a kind: `same` if all are there as they are here.
compare() {
    kind=$1
    shift
    [ $# -gt 0 ] || return 0
    result=same
    for file in "$@"; do
        if [ ! -e "$file" ]; then
            [ "$result" = replace ] || result=new
        elif ! cmp -s "$tree$file" "$file"; then result=replace
        fi
    done
    say "$kind" "$result"
}

if [ -e "$tree$config" ]; then compare config $config
elif [ -e $config ]; then say config keep
else say config missing
fi
how=$(installed_as)
say how "$how"
if [ -e "$1/pls-router.deb" ]; then
    # Not its documentation, which machines may leave out.
    compare package $(cd "$tree" && find . -type f \( -path './usr/bin/*' -o -path '*/systemd/*' \) | sed 's/^.//')
    say offered "$(dpkg-deb -f "$1/pls-router.deb" Package) $(dpkg-deb -f "$1/pls-router.deb" Version)"
    say architecture "$(dpkg-deb -f "$1/pls-router.deb" Architecture) $(dpkg --print-architecture)"
else
    compare binary $router
    compare units $(cd "$tree" && find . -path './etc/systemd/*' -type f | sed 's/^.//')
fi
if [ "$how" = package ]; then
    say package_state "$(package_state)"
    say package_version "$(package_version)"
fi

# The directory exists only where systemd is the init system.
if command -v systemctl >/dev/null 2>&1 && [ -d /run/systemd/system ]; then
    say systemd yes
    say active "$(systemctl is-active $service 2>/dev/null)"
    unit=$(systemctl show --property FragmentPath --value $service 2>/dev/null)
    case $(systemctl is-enabled $service 2>/dev/null) in
        masked*) say foreign "$service is masked" ;;
        *)
            if [ -n "$unit" ] && [ -e "$unit" ] && ! grep -q "^ExecStart=$router " "$unit"; then
                say foreign "$unit starts $(sed -n 's/^ExecStart=//p' "$unit" | head -n 1)"
            fi ;;
    esac
else
    say systemd no
fi
for tool in awk cmp df find flock install mktemp sed timeout; do
    command -v "$tool" >/dev/null 2>&1 || say lacks "$tool"
done

if [ -e /run/pls-router-deploy.lock ] && ! flock -n /run/pls-router-deploy.lock true; then
    say busy yes
elif [ -d $state/undo ]; then
    say unfinished "$(cat $state/undo/about 2>/dev/null)"
fi

# What is needed where, in KiB: the new files, and what is kept of the old ones (a package of them
# is made from a copy).
size() { du -skc "$@" 2>/dev/null | awk 'END { print $1 + 0 }'; }
new=$(size "$tree")
old=$(size $router)
room() {
    place=$1
    while [ ! -d "$place" ]; do place=${place%/*}; [ -n "$place" ] || place=/; done
    say room "$2 $(df -Pk "$place" | awk 'NR == 2 { print $4 }') $1"
}
room /usr $((new + 4096))
room $state $((3 * old + 4096))
room /etc/pls-router 1024
[ ! -e "$1/pls-router.deb" ] || room /var/lib/dpkg 16384

if [ -x $router ]; then
    say installed "$($router --version 2>&1 | head -n 1)"
    # One that somebody has drained is as healthy as it can be.
    if status=$(timeout 10 $router status 2>/dev/null) ||
        printf '%s\n' "$status" | grep -Eq '^(forwarding|healthy) *yes, draining'; then
        say healthy yes
    fi
    say sessions "$(printf '%s\n' "$status" | sed -n 's/^sessions *//p')"
    if printf '%s\n' "$status" | grep -q '^draining '; then say draining yes; fi
fi

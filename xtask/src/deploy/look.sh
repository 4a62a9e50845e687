# Reads what is installed, as root, and changes nothing. $1: the directory with what was copied.
directory=$1
say() { printf '%s %s\n' "$1" "$2"; }

compare() {
    if [ ! -e "$directory/$2" ]; then
        if [ -e "$3" ]; then say "$1" keep; else say "$1" missing; fi
    elif [ ! -e "$3" ]; then say "$1" new
    elif cmp -s "$directory/$2" "$3"; then say "$1" same
    else say "$1" replace
    fi
}
compare binary pls-router /usr/bin/pls-router
compare config config.toml /etc/pls-router/config.toml
compare unit pls-router.service /etc/systemd/system/pls-router.service

# The directory exists only where systemd is the init system.
if command -v systemctl >/dev/null 2>&1 && [ -d /run/systemd/system ]; then
    say systemd yes
    say active "$(systemctl is-active pls-router.service 2>/dev/null)"
else
    say systemd no
fi
for tool in flock install timeout; do
    command -v "$tool" >/dev/null 2>&1 || say lacks "$tool"
done
if [ -x /usr/bin/pls-router ]; then
    say installed "$(/usr/bin/pls-router --version 2>&1 | head -n 1)"
    if status=$(NO_COLOR=1 timeout 10 /usr/bin/pls-router status 2>/dev/null); then
        say healthy yes
    fi
    say sessions "$(printf '%s\n' "$status" | sed -n 's/^sessions *//p')"
fi

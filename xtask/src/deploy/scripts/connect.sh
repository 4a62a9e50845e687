# Runs as the user who logs in, for as long as the connection is up: makes a directory for what is
# copied, says who and where we are, and removes the directory when the connection ends, however it
# ends.
# $1: how many KiB the directory needs.
umask 077
directory=
say() { printf 'pls-router-deploy %s %s\n' "$1" "$2"; }
trap 'rm -rf "$directory"' EXIT
trap 'exit 1' HUP INT TERM PIPE
for base in "${TMPDIR:-/tmp}" /var/tmp "$HOME"; do
    free=$(df -Pk "$base" 2>/dev/null | awk 'NR == 2 { print $4 }')
    if [ "${free:-0}" -lt "$1" ]; then
        say refused "$base has $((${free:-0} / 1024)) MiB free of the $(($1 / 1024)) MiB that are needed"
        continue
    fi
    if ! directory=$(mktemp -d "$base/pls-router-deploy.XXXXXX" 2>&1); then
        say refused "$base: $(printf '%s' "$directory" | tail -n 1)"
        directory=
        continue
    fi
    # Hardened machines mount /tmp noexec, and the new pls-router has to run from here once.
    printf '#!/bin/sh\n' >"$directory/try" && chmod 700 "$directory/try"
    if "$directory/try" 2>/dev/null; then rm -f "$directory/try"; break; fi
    say refused "$base is mounted noexec"
    rm -rf "$directory"
    directory=
done

say system "$(uname -s)"
say machine "$(uname -m)"
say kernel "$(uname -r)"
say time "$(date +%s)"
say user "$(id -un)"
if command -v dpkg >/dev/null 2>&1 && [ -e /var/lib/dpkg/status ]; then say dpkg yes; else say dpkg no; fi
if [ "$(id -u)" = 0 ]; then
    say root login
elif ! command -v sudo >/dev/null 2>&1; then
    say root "no there is no sudo"
elif refusal=$(sudo -n sh -c : 2>&1); then
    say root sudo
else
    say root "no $(printf '%s' "$refusal" | tail -n 1)"
fi
say directory "$directory"
say ready yes
cat >/dev/null

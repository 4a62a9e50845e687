# What the scripts that run on a machine as root share.
set -u
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export NO_COLOR=1 LC_ALL=C DEBIAN_FRONTEND=noninteractive
service=pls-router.service
router=/usr/bin/pls-router
config=/etc/pls-router/config.toml
# The units of a machine without a package are here. They hide a package's.
units=/etc/systemd/system
# For root alone. `previous`: what a confirmed deploy has replaced. `undo`: what one that is not
# confirmed yet has replaced.
state=/var/lib/pls-router-deploy

indented() { sed 's/^/    /'; }

say() { printf '%s %s\n' "$1" "$2"; }

# Children ignore the signals that this script ignores, all but KILL.
limited() { timeout -s KILL "$@"; }

# The state of the package in dpkg's words, such as `installed`, and its version; or nothing.
package_state() { dpkg-query -W -f '${db:Status-Status}' pls-router 2>/dev/null; }
package_version() { dpkg-query -W -f '${Version}' pls-router 2>/dev/null; }

# How pls-router is installed: by `package`, by `files`, or `none`.
installed_as() {
    case $(package_state) in
        '' | not-installed | config-files)
            if [ -e $router ] || [ -e $units/$service ]; then echo files; else echo none; fi ;;
        *) echo package ;;
    esac
}

is_running() {
    case $(limited 30 systemctl is-active $service </dev/null 9>&-) in
        active | activating | reloading) return 0 ;;
        *) return 1 ;;
    esac
}

# Takes the lock of all deploys, for as long as this script and nobody but this script runs.
lock() {
    # For root alone: whoever can open it can hold it.
    (umask 077 && : >>/run/pls-router-deploy.lock)
    chmod 600 /run/pls-router-deploy.lock
    exec 9>>/run/pls-router-deploy.lock
    flock -n 9 && echo $$ >/run/pls-router-deploy.lock
}

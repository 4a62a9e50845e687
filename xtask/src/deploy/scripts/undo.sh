# What a deploy replaces, and the way back to it. It needs $limit: how many seconds a version has to
# become healthy.
undo=$state/undo
reasons=
managed="$router $config $units/pls-router.service $units/pls-router.socket"

# Children do not get the lock, or a daemon that one of them starts would hold it.
ctl() { limited "$limit" systemctl "$@" </dev/null 9>&- 3>&-; }

# Does not go back as clocks do.
now() {
    read -r uptime _ </proc/uptime
    echo "${uptime%.*}"
}

# One that forwards and that somebody has drained is as healthy as it can be. (`healthy` is the word
# of versions before 0.1.)
healthy() {
    reasons=$(limited 10 $router status 2>&1 </dev/null 9>&- 3>&-) && return
    printf '%s\n' "$reasons" | grep -Eq '^(forwarding|healthy) *yes, draining'
}

wait_healthy() {
    end=$(($(now) + limit))
    until healthy; do
        case $(ctl is-active $service) in
            failed | inactive) reasons="$service has ended
$reasons"; return 1 ;;
        esac
        [ "$(now)" -lt "$end" ] || return 1
        sleep 0.3
    done
}

# What is drained for the restart takes new connections again. A drain outlives the daemon.
undrain() {
    [ "$drained" = yes ] || return 0
    limited 10 $router undrain >/dev/null 2>&1 </dev/null 9>&- 3>&-
}

main_pid() { ctl show --property MainPID --value $service 2>/dev/null; }

# The daemon that runs is another one than before, and is that of the binary that is installed.
restarted() {
    pid=$(main_pid)
    [ "${pid:-0}" -gt 0 ] && [ "$pid" != "$was_pid" ] && [ "/proc/$pid/exe" -ef $router ]
}

# dpkg, with its words in `said`; waits while somebody else installs something.
with_dpkg() {
    until said=$(PLS_ROUTER_DEPLOY=1 limited $((limit + 300)) dpkg --force-confold "$@" 2>&1 </dev/null 9>&- 3>&-); do
        case $said in *'locked by another process'*) ;; *) return 1 ;; esac
        [ "$(now)" -lt "$dpkg_end" ] || return 1
        sleep 1
    done
}
dpkg_end=$(($(now) + 120))

# Puts a file in place at once, as it is in directory $1. One that is there keeps owner and
# permissions.
place() {
    case $2 in
        "$router") mode=0755 ;;
        "$config") mode=0640 ;;
        *) mode=0644 ;;
    esac
    folder=${2%/*}
    [ -d "$folder" ] || mkdir -m 0755 "$folder" || return
    install -o 0 -g 0 -m $mode "$1$2" "$2.new" || return
    [ ! -e "$2" ] || cp --attributes-only --preserve=mode,ownership "$2" "$2.new" || return
    mv -f "$2.new" "$2"
}

# Makes a package of the installed one, with its files as they are now: $1, a file.
repack() {
    tree=$state/repack
    rm -rf "$tree"
    mkdir -p "$tree/DEBIAN" || return
    dpkg-query -s pls-router | awk '
        /^[^ ]/ { skip = /^(Status|Conffiles|Config-Version):/ }
        !skip' >"$tree/DEBIAN/control" || return
    for script in $(dpkg-query --control-list pls-router); do
        [ "$script" = md5sums ] && continue
        cp -a "$(dpkg-query --control-path pls-router "$script")" "$tree/DEBIAN/" || return
    done
    dpkg-query -L pls-router | while read -r file; do
        if [ -d "$file" ] && [ ! -L "$file" ]; then mkdir -p "$tree$file"
        elif [ -e "$file" ] || [ -L "$file" ]; then
            mkdir -p "$tree${file%/*}" && cp -a "$file" "$tree$file"
        fi || exit
    done || return
    # dpkg would take what people have written for what the package brought, and replace it at the
    # next upgrade.
    dpkg-query -W -f '${Conffiles}\n' pls-router | while read -r file sum _; do
        [ -n "$file" ] && [ -f "$tree$file" ] || continue
        echo "$sum  $tree$file" | md5sum --status -c - || echo "# changed on this machine" >>"$tree$file"
    done
    dpkg-deb --root-owner-group -Zgzip -z1 --build "$tree" "$1" >/dev/null || return
    rm -rf "$tree"
}

# Keeps all that a deploy may change in $undo.
save() {
    rm -rf $state/undo.new
    (umask 077 && mkdir -p $state/undo.new/tree) || return
    for file in $managed; do
        [ -e "$file" ] || continue
        mkdir -p "$state/undo.new/tree${file%/*}" && cp -a "$file" "$state/undo.new/tree$file" || return
    done
    if [ "$was_how" = package ]; then repack $state/undo.new/pls-router.deb || return; fi
    printf '%s\n' "was_how=$was_how" "was_running=$was_running" "was_enabled=$was_enabled" \
        "was_healthy=$was_healthy" "was_pid=$was_pid" drained=no >$state/undo.new/facts || return
    printf '%s\n' "$about" >$state/undo.new/about || return
    mv -T $state/undo.new $undo
}

forget() { rm -rf $undo $state/undo.new $state/repack; rmdir $state 2>/dev/null; }

# Takes a package off that was not there before.
remove_package() {
    # Its scripts would stop what is about to run again, and take the programs off.
    [ "$was_running" = no ] || for script in prerm postrm; do
        rm -f "$(dpkg-query --control-path pls-router $script 2>/dev/null)"
    done
    with_dpkg --purge --force-remove-reinstreq pls-router
}

# The files of before, and nothing else of those that a deploy changes.
restore() {
    result=0
    for file in $managed; do
        rm -f "$file.new"
        if [ -e "$undo/tree$file" ]; then
            cmp -s "$undo/tree$file" "$file" && continue
            mkdir -p "${file%/*}" && cp -a "$undo/tree$file" "$file.new" && mv -f "$file.new" "$file" || result=1
        elif [ "$was_how" != package ] || [ "$file" != $router ]; then
            rm -f "$file" || result=1
        fi
    done
    [ -e $config ] || rmdir "${config%/*}" 2>/dev/null
    return $result
}

restore_package() {
    if [ "$(package_state)" = installed ] && cmp -s "$undo/tree$router" $router &&
        [ "$(package_version)" = "$(dpkg-deb -f $undo/pls-router.deb Version)" ]; then
        restore
        return
    fi
    with_dpkg --unpack $undo/pls-router.deb && restore && with_dpkg --configure pls-router
}

# Back to what `save` has kept. Exit status 3: all is as before; 4: it is not.
put_back() {
    echo "putting back what was there before"
    # The previous version is given its time, also where little was given to the new one.
    [ "$limit" -ge 60 ] || limit=60
    dpkg_end=$(($(now) + 120))
    # While the unit and the binary are still there.
    if [ "$was_running" = no ]; then
        ctl stop $service 2>/dev/null
        # After a crash the programs would go on forwarding, with nobody to answer for them.
        limited 10 $router detach >/dev/null 2>&1 </dev/null 9>&- 3>&-
    fi
    [ "$was_enabled" = yes ] || ctl disable $service 2>/dev/null
    wrong=no
    said=
    if [ "$was_how" = package ]; then restore_package || wrong=yes
    else
        case $(package_state) in '' | not-installed) ;; *) remove_package || wrong=yes ;; esac
        restore || wrong=yes
    fi
    if [ $wrong = yes ]; then
        echo "not all files could be put back; they are kept in $undo"
        printf '%s\n' "$said" | indented
    fi
    ctl daemon-reload || wrong=yes
    [ $wrong = yes ] || forget
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
    [ $wrong = no ] && exit 3
    exit 4
}

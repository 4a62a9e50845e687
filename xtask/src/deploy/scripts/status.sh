# Says what is installed here and how it is. As root; changes nothing.
say how "$(installed_as)"
say package "$(package_version)"
if [ -x $router ]; then
    say version "$($router --version 2>&1 | head -n 1)"
    say status "$(timeout 10 $router status -o json 2>/dev/null | tr -d '\n')"
fi
say active "$(systemctl is-active $service 2>/dev/null)"
say enabled "$(systemctl is-enabled $service 2>/dev/null)"
[ ! -d $state/undo ] || say unfinished "$(cat $state/undo/about)"
[ ! -x $state/previous/tree$router ] || say previous "$($state/previous/tree$router --version 2>&1 | head -n 1)"

# Hides this machine's own programs and files that packages have, in a mount namespace, and becomes
# $@.
set -eu
for folder in /usr/sbin /usr/local/sbin /usr/lib/nginx /usr/lib/postgresql; do
    if [ -d "$folder" ]; then mount -t tmpfs none "$folder"; fi
done
exec "$@"

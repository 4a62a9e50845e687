# Makes a machine of its own out of this mount namespace, and becomes its sshd.
# $1: an empty directory. $2: a directory with what goes to /run/target. $3: the stand-ins for
# systemd's programs.
#
# What is written to /etc, /usr and /var lands in memory and is gone with the namespace; /run and
# /tmp begin empty.
set -eu
memory=$1
mount -t tmpfs -o mode=0755 target "$memory"
for directory in etc usr var; do
    mkdir "$memory/$directory" "$memory/$directory.work"
    mount -t overlay -o "lowerdir=/$directory,upperdir=$memory/$directory,workdir=$memory/$directory.work" target "/$directory"
done
# A pls-router that this machine really has is none of the target's business.
rm -rf /usr/bin/pls-router* /etc/pls-router /etc/systemd/system /var/lib/pls-router*
# Images for containers have one that keeps services from starting.
rm -f /usr/sbin/policy-rc.d
mkdir -p /usr/local/bin /etc/systemd/system
cp "$3/systemctl" "$3/journalctl" /usr/local/bin/
chmod 755 /usr/local/bin/systemctl /usr/local/bin/journalctl
mount -t tmpfs -o mode=1777 target /tmp
mount -t bpf bpf /sys/fs/bpf
mkdir -p "$memory/run/sshd" "$memory/run/target" "$memory/run/systemd/system" "$memory/run/stand-in"
cp "$2"/* "$memory/run/target/"
mount --bind "$memory/run" /run
chmod 600 /run/target/host_key
# sudo and logins want a name. This machine may have an account of that name, with other rights.
sed -i '/^azureuser:/d' /etc/passwd /etc/shadow
echo 'azureuser:x:4242:4242::/tmp:/bin/sh' >>/etc/passwd
echo 'azureuser:*:19000:0:99999:7:::' >>/etc/shadow
exec /usr/sbin/sshd -D -e -f /run/target/sshd_config

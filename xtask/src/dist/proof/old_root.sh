# Runs pls-router in the root $1, with a network interface and nothing else of its own.
root=$1
mkdir -p $root/proc $root/sys $root/etc/pls-router $root/run $root/tmp
mount -t proc proc $root/proc
mount -t sysfs sysfs $root/sys
mount -t bpf bpf $root/sys/fs/bpf
ip link add eth0 type veth peer name peer
ip address add 10.9.0.1/24 dev eth0
ip link set eth0 up
ip link set peer up
configuration eth0 >$root/etc/pls-router/config.toml
cat $root/etc/debian_version
chroot $root /usr/bin/pls-router --version
NO_COLOR=1 chroot $root /usr/bin/pls-router check

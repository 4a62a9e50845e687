#!/bin/sh
# Makes the image of a virtual machine with Debian 12, as its package makes it: systemd, sshd,
# cloud-init, Debian's kernel for clouds. Into the directory $1: disk, vmlinuz, initrd.
# Packages come from the mirror $2. Needs root, and nothing of this machine is changed.
set -eu
directory=$1
mirror=$2
root=$directory/root

# As small as it can be and still be what a cloud's image is; documentation only takes time. So does
# an initial RAM disk with drivers for every machine.
mmdebstrap --quiet --mode=root --variant=minbase \
    --essential-hook='mkdir -p "$1/etc/initramfs-tools/conf.d" "$1/usr/share/initramfs-tools/modules.d"' \
    --essential-hook='echo MODULES=list >"$1/etc/initramfs-tools/conf.d/machine"' \
    --essential-hook='printf "virtio_pci\nvirtio_blk\next4\n" >"$1/usr/share/initramfs-tools/modules.d/machine"' \
    --include=systemd-sysv,dbus,udev,kmod,netbase,procps,iproute2,ethtool,sudo,curl,ca-certificates \
    --include=openssh-server,cloud-init,netplan.io,linux-image-cloud-amd64 \
    --aptopt='APT::Install-Recommends "false"' --dpkgopt=force-unsafe-io \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' \
    bookworm "$root" "$mirror"

# cloud-init fails on a root that is mounted read-only, which is what a missing line here makes.
echo '/dev/vda / ext4 defaults 0 1' >"$root/etc/fstab"
# No other source of data than a seed is looked for, which would take minutes.
echo 'datasource_list: [NoCloud, None]' >"$root/etc/cloud/cloud.cfg.d/90-sources.cfg"
# What would use the network by itself, and there is none.
ln -sf /dev/null "$root/etc/systemd/system/apt-daily.timer"
ln -sf /dev/null "$root/etc/systemd/system/apt-daily-upgrade.timer"
# Nobody sits at it.
ln -sf /dev/null "$root/etc/systemd/system/serial-getty@.service"
ln -sf /dev/null "$root/etc/systemd/system/getty@.service"
# Filled at the first boot.
: >"$root/etc/machine-id"
rm -f "$root"/etc/ssh/ssh_host_* "$root/etc/hostname"
# As in Azure: the platform's DNS server.
echo 'nameserver 168.63.129.16' >"$root/etc/resolv.conf"

mv "$root"/boot/vmlinuz-* "$directory/vmlinuz"
mv "$root"/boot/initrd.img-* "$directory/initrd"
rm -rf "$root/var/cache/apt" "$root"/var/lib/apt/lists/*
# Without a loop device, and with holes for what is empty.
mke2fs -q -t ext4 -L root -d "$root" "$directory/disk" 3G
rm -rf "$root"

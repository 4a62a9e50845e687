#!/bin/busybox sh
# The first process of the virtual machine: makes it fit for the tests, runs them, says how they
# ended and switches it off.

export PATH=/bin
# The programs that are there already stay.
/bin/busybox --install -s /bin 2>/dev/null

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t bpf bpf /sys/fs/bpf

# One may need another, and which one differs from kernel to kernel.
for pass in 1 2 3; do
    for module in /modules/*; do
        insmod "$module" 2>/dev/null
    done
done
ip link set lo up

uname -srv
sh /script
echo "@LAST_LINE@$?"
poweroff -f

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

# In the order of the list: one may need another.
while read -r module; do
    insmod "/modules/$module"
done </modules/list
ip link set lo up

uname -srv
sh /script
echo "@LAST_LINE@$?"
poweroff -f

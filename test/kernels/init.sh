#!/bin/sh
# The guest's first process: brings up what a node has, lets the checks run, and powers off. The report goes to the second
# serial port, the console to the first.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
mount -t tmpfs run /run
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
for module in /modules/*.ko; do insmod "$module" || echo "insmod $module failed"; done
ip link set lo up
cd /underpass
stty -F /dev/ttyS1 raw 2>/dev/null
node dist/test/kernels/guest.js /dev/ttyS1 $(cat /arguments)
poweroff -f

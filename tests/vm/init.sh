#!/bin/sh
# The guest's process 1: the kernel's file systems, udev, the project, and the agent that the host
# talks to. No systemd: under emulation that would take most of a minute.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export HOME=/root LANG=C.UTF-8 LC_ALL=C.UTF-8

mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev 2>/dev/null
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t tmpfs -o mode=755 run /run
mount -t tmpfs project /project
mount -t cgroup2 cgroup2 /sys/fs/cgroup
ln -sf /proc/self/fd /dev/fd
mkdir -p /run/lock /run/lvm
install -d -o postgres -g postgres /run/postgresql
hostname guest   # before udev: md arrays made here are this host's own when it comes back
ip link set lo up

# For `dmesg`: where the time of a boot goes.
stage() { echo "guest-init: $*" >/dev/kmsg; }

stage "starting udev"
modprobe -a virtio_console
/lib/systemd/systemd-udevd --daemon
udevadm trigger --action=add --subsystem-match=block --subsystem-match=virtio-ports \
    --subsystem-match=mem --subsystem-match=misc
udevadm settle --timeout=30
stage "looking for volume groups"
# Arrays were assembled by udev. For volume groups Debian's rule needs systemd: they come up here.
[ -z "$(blkid -t TYPE=LVM2_member -o device)" ] || vgchange --quiet -aay

stage "unpacking the project"
tar -x -C /project -f /dev/disk/by-id/virtio-project
stage "starting the agent"
python3 /project/tests/vm/agent.py /dev/virtio-ports/agent

sync
echo u > /proc/sysrq-trigger
echo o > /proc/sysrq-trigger
sleep 60

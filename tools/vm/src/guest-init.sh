#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# The guest's first process: make the machine ready, run the command, report and power off.
#
# The sysroot is the root file system, read-only; /devcache is the folder of this run. Ports of the
# virtio serial device: 1 and 2 are the command's output and errors, 3 tells the runner.
export PATH=/devcache/bin:/usr/bin:/usr/sbin HOME=/root LANG=C.UTF-8 TERM="${TERM:-linux}"

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t debugfs debugfs /sys/kernel/debug
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
for dir in /dev/shm /tmp /run /mnt /root /var/tmp; do mount -t tmpfs tmpfs $dir; done
mount --bind /devcache/lib/modules /usr/lib/modules
ip link set lo up

exec 5>/dev/vport0p3
mkfifo /run/out /run/err
cat /run/out >/dev/vport0p1 &
ports=$!
cat /run/err >/dev/vport0p2 &
ports="$ports $!"
exec 3>/run/out 4>/run/err

ready() {
	mkdir /mnt/tmpfs /mnt/ext4 /mnt/xfs /mnt/btrfs &&
		mount -t tmpfs tmpfs /mnt/tmpfs &&
		mount -t ext4 /dev/vda /mnt/ext4 &&
		mount -t xfs /dev/vdb /mnt/xfs &&
		mount -t btrfs /dev/vdc /mnt/btrfs || return
	if [ -e /devcache/share ]; then
		mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144,cache=mmap share /host || return
	fi
	modprobe test_hmm || return
	if [ -e /devcache/gpu ]; then modprobe vsvm; fi
}

if ! ready >&4 2>&1; then
	echo "devcache: the guest could not be made ready" >&4
	status=254
elif [ -e /devcache/cmd ]; then
	cd /tmp || exit
	sh /devcache/cmd </dev/null >&3 2>&4 3>&- 4>&- 5>&-
	status=$?
else
	cd /root || exit
	setsid --ctty --wait bash -l </dev/hvc0 >/dev/hvc0 2>&1 3>&- 4>&- 5>&-
	status=$?
fi

# What the command wrote has to pass the ports; a process it left behind may hold them open.
exec 3>&- 4>&-
for _ in $(seq 100); do
	# shellcheck disable=SC2086 # a list
	kill -0 $ports 2>/dev/null || break
	sleep 0.1
done
cd / || exit
umount /mnt/ext4 /mnt/xfs /mnt/btrfs 2>/dev/null
echo "tainted $(cat /proc/sys/kernel/tainted)" >&5
echo "status $status" >&5
# Wait for the end without a program: by now the root file system may be gone.
mkfifo /run/never
exec 6<>/run/never
echo o >/proc/sysrq-trigger
read -r _ <&6

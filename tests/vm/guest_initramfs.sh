#!/bin/busybox sh
# PID 1 in the guest's initramfs: reaches the disks, unpacks the job and becomes its init.
/bin/busybox mkdir -p /bin /dev /proc /sys /root
/bin/busybox --install -s /bin
export PATH=/bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys

fail() {
  echo "guest: cannot start: $*" >/dev/ttyS1
  echo o >/proc/sysrq-trigger
  sleep 60
}

while read -r module; do
  insmod "/modules/$module" || fail "module $module"
done </modules/order

disk() {
  for tries in 1 2 3 4 5 6 7 8 9 10; do
    for block in /sys/block/vd*; do
      if [ "$(cat "$block/serial" 2>/dev/null)" = "$1" ]; then
        echo "/dev/${block##*/}"
        return
      fi
    done
    sleep 1
  done
}

mount -t ext4 -o noatime "$(disk root)" /root || fail "the root disk"
mkdir -p "/root/lib/modules/$(uname -r)"
mount -t ext4 -o ro "$(disk modules)" "/root/lib/modules/$(uname -r)" || fail "the modules disk"
tar -x -f "$(disk job)" -C /root || fail "the job disk"
disk result >/root/job/result-disk
for place in dev proc sys; do
  mount --move "/$place" "/root/$place"
done
exec switch_root /root /bin/sh /job/init

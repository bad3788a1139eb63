#!/bin/sh
# PID 1 in the guest once its root is there: a machine as a distribution's init would leave it,
# then the job, then its result on the raw disk and power off. Settings come from /job/settings.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 TERM=dumb
. /job/settings
exec </dev/null >/dev/ttyS1 2>&1
say() { echo "guest: $*"; }

mount -t tmpfs -o mode=755 run /run
mount -t tmpfs -o mode=1777 tmp /tmp
mkdir -p /dev/pts /dev/shm /run/lock
mount -t devpts -o gid=5,mode=620,ptmxmode=666 pts /dev/pts
mount -t tmpfs -o mode=1777 shm /dev/shm
mount -t securityfs security /sys/kernel/security 2>/dev/null
mount -t tracefs tracing /sys/kernel/tracing 2>/dev/null

case $CGROUPS in
  pure) mount -t cgroup2 cgroup2 /sys/fs/cgroup ;;
  hybrid)
    mount -t tmpfs -o mode=755 cgroup /sys/fs/cgroup
    mkdir /sys/fs/cgroup/unified
    mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified
    for controller in pids memory cpu,cpuacct net_cls,net_prio; do
      mkdir "/sys/fs/cgroup/$controller"
      mount -t cgroup -o "$controller" cgroup "/sys/fs/cgroup/$controller" ||
        rmdir "/sys/fs/cgroup/$controller"
    done
    ;;
  version1)
    mount -t tmpfs -o mode=755 cgroup /sys/fs/cgroup
    mkdir /sys/fs/cgroup/pids
    mount -t cgroup -o pids cgroup /sys/fs/cgroup/pids
    ;;
esac

ip link set lo up
hostname guest
# What Debian's systemd sets.
echo 1 >/proc/sys/kernel/sysrq
echo '|/bin/false' >/proc/sys/kernel/core_pattern
for module in $WITHOUT_MODULES; do
  echo "install $module /bin/false" >>/etc/modprobe.d/without.conf
done

say "started $(uname -r)"
cd /project || say "no /project"
mkdir -p /job/out
sh /job/command
status=$?
tar -c -f - -C /job/out . | dd of="$(cat /job/result-disk)" bs=64k conv=fsync 2>/dev/null
say "status $status"
sync
echo o >/proc/sysrq-trigger
sleep 60

#!/bin/sh -eu
# usage: vagrant_world.sh DIRECTORY COMMAND...
# The first process of mount, network and PID namespaces of its own: starts libvirt's daemons with files
# below DIRECTORY, then becomes COMMAND. Whatever either leaves running ends with it.
world=$1
shift
mkdir -p "$world/etc" "$world/lib" "$world/cache"
cp -r /etc/libvirt/. "$world/etc/"
# Root runs QEMU: /dev/kvm may be root's alone, and libvirtd asks an unusable one again at every call.
printf 'user = "root"\ngroup = "root"\nsecurity_driver = "none"\ncgroup_controllers = []\nnamespaces = []\n' \
  >"$world/etc/qemu.conf"
printf 'auth_unix_rw = "none"\nauth_unix_ro = "none"\n' >"$world/etc/libvirtd.conf"
rm -rf "$world/etc/qemu/networks/autostart"
mount --bind "$world/etc" /etc/libvirt
mount --bind "$world/lib" /var/lib/libvirt
mount --bind "$world/cache" /var/cache/libvirt
mount -t tmpfs -o mode=755 run /run
mkdir -p /run/lock /run/sshd
ip link set lo up
virtlogd -d
libvirtd -d
tries=0
until virsh -q -c qemu:///system version >/dev/null 2>&1; do
  tries=$((tries + 1))
  [ "$tries" -lt 100 ] || { virsh -c qemu:///system version && break || exit 125; }
  sleep 0.2
done
exec "$@"

"""Gives up everything the proxy process was started with.

Stages, each of which `give_up` must do in this order:

1. limits: no core, enough descriptors (raising needs root);
2. the capability bounding set, which only a capable process may shrink;
3. groups, group and user; the kernel clears the effective sets with the last;
4. inheritable and ambient capabilities, no_new_privs;
5. non-dumpable and the parent-death signal, both of which a change of uid undoes;
6. the system call filter.

Nothing may be imported afterwards: the checkout may be unreadable to the uid that is left.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import signal
from typing import Final

import seccomp

from netns_runtime.errors import step_error

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_DUMPABLE: Final = 4
_PR_CAPBSET_DROP: Final = 24
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_CAP_AMBIENT: Final = 47
_PR_CAP_AMBIENT_CLEAR_ALL: Final = 4
_CAPABILITY_VERSION_3: Final = 0x20080522
_CLONE_THREAD: Final = 0x00010000
_BPF_MAP_LOOKUP_ELEM: Final = 1
_BEYOND_FLOWS: Final = 2048

_libc = ctypes.CDLL(None, use_errno=True)


def make_unreadable() -> None:
    """Keep other processes of our uid from reading our memory, from the first moment on."""
    _prctl("non-dumpable", _PR_SET_DUMPABLE, 0)


def give_up(uid: int, *, flows: int, parent: int) -> None:
    """Do all stages. `parent` is the pid that must still be ours. Raises StepError."""
    _set_limits(flows)
    _drop_bounding_set()
    try:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    except OSError as error:
        raise step_error(f"proxy: change to uid {uid}", error) from error
    _drop_capabilities()
    _prctl("no_new_privs", _PR_SET_NO_NEW_PRIVS, 1)
    make_unreadable()
    _prctl("parent-death signal", _PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise SystemExit(1)
    load_filter()


def _prctl(name: str, option: int, *arguments: int) -> None:
    words = [ctypes.c_ulong(word) for word in (*arguments, 0, 0, 0, 0)][:4]
    if _libc.prctl(option, *words) != 0:
        code = ctypes.get_errno()
        raise step_error(f"proxy: {name}", OSError(code, os.strerror(code)))


def _set_limits(flows: int) -> None:
    # 1, not 0: a core_pattern that is a pipe is run whatever the limit, unless that is 1
    # (fs/coredump.c, "cprm.limit == 1").
    resource.setrlimit(resource.RLIMIT_CORE, (1, 1))
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * flows + _BEYOND_FLOWS
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, max(wanted, hard)))
    except (OSError, ValueError):
        # Past fs.nr_open, or no root (tests): accept() waits where descriptors run out.
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))


def _drop_bounding_set() -> None:
    with open("/proc/sys/kernel/cap_last_cap", encoding="ascii") as file:
        last = int(file.read())
    for capability in range(last + 1):
        _prctl("capability bounding set", _PR_CAPBSET_DROP, capability)


def _drop_capabilities() -> None:
    _prctl("ambient capabilities", _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    nothing = (ctypes.c_uint32 * 6)()
    if _libc.capset(header, nothing) != 0:
        code = ctypes.get_errno()
        raise step_error("proxy: capabilities", OSError(code, os.strerror(code)))


# What a proxy that runs hostile bytes has no use for. ENOSYS, where the C library asks for the
# newer call first and then falls back to one whose arguments can be looked at.
_DENIED: Final[dict[int, tuple[str, ...]]] = {
    errno.ENOSYS: ("clone3", "openat2", "io_uring_setup", "io_uring_enter", "io_uring_register"),
    errno.EPERM: (
        "execve execveat fork vfork ptrace process_vm_readv process_vm_writev process_madvise "
        "pidfd_open pidfd_getfd pidfd_send_signal kcmp "
        "mount umount2 pivot_root chroot move_mount open_tree fsopen fsconfig fsmount fspick "
        "mount_setattr setns unshare swapon swapoff quotactl "
        "keyctl add_key request_key kexec_load kexec_file_load "
        "init_module finit_module delete_module create_module reboot "
        "perf_event_open userfaultfd seccomp name_to_handle_at open_by_handle_at acct "
        "settimeofday clock_settime clock_adjtime adjtimex sethostname setdomainname "
        "iopl ioperm modify_ldt syslog personality uselib "
        "creat truncate unlink unlinkat rename renameat renameat2 link linkat symlink symlinkat "
        "mkdir mkdirat rmdir mknod mknodat chmod fchmod fchmodat chown fchown lchown fchownat "
        "utime utimes utimensat futimesat setxattr lsetxattr fsetxattr removexattr lremovexattr "
        "fremovexattr inotify_init inotify_init1 fanotify_init fanotify_mark "
        "kill tkill process_mrelease memfd_secret msgget semget shmget shmat mq_open "
        "setuid setgid setreuid setregid setresuid setresgid setgroups setfsuid setfsgid capset",
    ),
}
_WRITING: Final = (
    (os.O_ACCMODE, os.O_WRONLY),
    (os.O_ACCMODE, os.O_RDWR),
    (os.O_CREAT, os.O_CREAT),
    (os.O_TRUNC, os.O_TRUNC),
)
_AF_UNIX, _AF_INET, _AF_INET6 = 1, 2, 10
_SOCK_TYPE_MASK: Final = 0xF
_SOCK_STREAM, _SOCK_DGRAM = 1, 2


def load_filter() -> None:
    """Load the filter: a list of what is refused, since what glibc's resolver calls is glibc's."""
    try:
        filter_ = seccomp.SyscallFilter(defaction=seccomp.ALLOW)
        for code, groups in _DENIED.items():
            for name in " ".join(groups).split():
                _deny(filter_, code, name)
        arg, masked = seccomp.Arg, seccomp.MASKED_EQ
        _deny(filter_, errno.EPERM, "clone", arg(0, masked, _CLONE_THREAD, 0))
        _deny(filter_, errno.EPERM, "bpf", arg(0, seccomp.NE, _BPF_MAP_LOOKUP_ELEM))
        for mask, value in _WRITING:
            _deny(filter_, errno.EACCES, "openat", arg(2, masked, mask, value))
            _deny(filter_, errno.EACCES, "open", arg(1, masked, mask, value))
        for family in range(46):
            if family not in {_AF_UNIX, _AF_INET, _AF_INET6}:
                _deny(filter_, errno.EAFNOSUPPORT, "socket", arg(0, seccomp.EQ, family))
        _deny(filter_, errno.EAFNOSUPPORT, "socket", arg(0, seccomp.GT, 45))
        for kind in range(16):
            if kind not in {_SOCK_STREAM, _SOCK_DGRAM}:
                for family in (_AF_INET, _AF_INET6):
                    _deny(
                        filter_,
                        errno.EPERM,
                        "socket",
                        arg(0, seccomp.EQ, family),
                        arg(1, masked, _SOCK_TYPE_MASK, kind),
                    )
        filter_.load()
    except (OSError, RuntimeError, ValueError) as error:
        raise step_error("proxy: system call filter", error) from error


def _deny(filter_: seccomp.SyscallFilter, code: int, name: str, *arguments: seccomp.Arg) -> None:
    filter_.add_rule(seccomp.ERRNO(code), name, *arguments)

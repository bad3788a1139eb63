"""The system calls CMD may not make: a table, and the two BPF programs compiled from it.

Everything not named is allowed, i386 included; x32 and any other table answer ENOSYS, and so does
every call newer than `NEWEST_KNOWN_CALL`, so that a future mount API is refused before anybody
has heard of it. `filters_of` is pure apart from libseccomp, which it imports when called; it ends
with the programs as bytes for bubblewrap's `--add-seccomp-fd`, or with StepError.
"""

from __future__ import annotations

import errno
import os
import platform
import struct
from dataclasses import dataclass
from typing import Any, Final

from netns_runtime.errors import StepError, step_error

LOW_32_BITS: Final = 0xFFFFFFFF

# Refused whatever the arguments. Most need a capability CMD lacks; they are here because a kernel
# bug behind them should be out of reach too.
REFUSED: Final = {
    errno.EPERM: """
        bpf perf_event_open userfaultfd io_uring_setup io_uring_enter io_uring_register
        keyctl add_key request_key
        mount umount umount2 pivot_root chroot open_tree move_mount fsopen fsconfig fsmount fspick
        mount_setattr setns open_by_handle_at fanotify_init
        process_vm_readv process_vm_writev pidfd_getfd kcmp lookup_dcookie
        kexec_load kexec_file_load init_module finit_module delete_module create_module
        get_kernel_syms query_module quotactl quotactl_fd acct swapon swapoff reboot vhangup syslog
        settimeofday stime clock_settime clock_settime64 sethostname setdomainname
        iopl ioperm vm86 vm86old nfsservctl uselib _sysctl
    """,
    # glibc falls back on clone, whose flags are an argument and can be filtered.
    errno.ENOSYS: "clone3",
}

NAMESPACE_FLAGS: Final = (
    0x00020000,  # NEWNS
    0x02000000,  # NEWCGROUP
    0x04000000,  # NEWUTS
    0x08000000,  # NEWIPC
    0x10000000,  # NEWUSER
    0x20000000,  # NEWPID
    0x40000000,  # NEWNET
)
CLONE_NEWTIME: Final = 0x80  # part of clone's exit signal: only unshare takes it

AF_INET, AF_INET6, AF_NETLINK, AF_MAX_KNOWN = 2, 10, 16, 16
REFUSED_FAMILIES: Final = (3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15)
SOCK_TYPE_MASK: Final = 0xF
SOCK_RAW, SOCK_DCCP, SOCK_PACKET = 3, 6, 10
# Each loads a kernel module on first use, and none passes the connect hooks.
REFUSED_PROTOCOLS: Final = (33, 115, 132, 256)  # DCCP, L2TP, SCTP, SMC
TERMINAL_INJECTION: Final = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX
PTRACE_OF_OTHERS: Final = (16, 0x4206)  # ATTACH, SEIZE
RLIMIT_CORE: Final = 4
SYS_SOCKET: Final = 1  # socketcall's number for socket()

# file_setattr, Linux 6.17; open_tree_attr is refused. From 424 on all tables number alike.
NEWEST_KNOWN_CALL: Final = 469
OPEN_TREE_ATTR: Final = 467
# READ_IMPLIES_EXEC, ADDR_COMPAT_LAYOUT, MMAP_PAGE_ZERO (linux/personality.h).
REFUSED_PERSONALITY: Final = 0x0700000
PERSONALITY_QUERY: Final = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Arch:
    """An audit architecture and its number for personality(2)."""

    audit: int
    personality: int


ARCHES: Final[dict[str, tuple[Arch, ...]]] = {
    "x86_64": (Arch(0xC000003E, 135), Arch(0x40000003, 136)),
    "aarch64": (Arch(0xC00000B7, 92), Arch(0x40000028, 136)),
}


def filters_of(machine: str | None = None) -> tuple[bytes, ...]:
    """The classic BPF programs to load, each an array of struct sock_filter.

    Raises StepError where libseccomp is missing or this machine's system call table is unknown.
    """
    machine = machine or platform.machine()
    if machine not in ARCHES:
        known = ", ".join(sorted(ARCHES))
        raise StepError(f"no system call filter for {machine}", remedy=f"run on one of: {known}")
    return (_denials(machine), _unknown_calls(ARCHES[machine]))


def _denials(machine: str) -> bytes:
    try:
        import seccomp
    except ImportError as missing:
        raise step_error(
            "system call filter", missing, remedy="install python3-seccomp"
        ) from missing
    rules = seccomp.SyscallFilter(seccomp.ALLOW)
    rules.set_attr(seccomp.Attr.ACT_BADARCH, seccomp.ERRNO(errno.ENOSYS))
    rules.set_attr(seccomp.Attr.CTL_OPTIMIZE, 2)  # binary tree
    rules.add_arch(seccomp.Arch.X86 if machine == "x86_64" else seccomp.Arch.ARM)
    _add_denials(rules, seccomp)
    with os.fdopen(os.memfd_create("netns-run", os.MFD_CLOEXEC), "w+b") as program:
        rules.export_bpf(program)
        program.seek(0)
        return program.read()


def _add_denials(rules: Any, seccomp: Any) -> None:
    def refuse(error: int, call: str, *arguments: Any) -> None:
        rules.add_rule(seccomp.ERRNO(error), call, *arguments)

    def low(position: int, value: int, mask: int = LOW_32_BITS) -> Any:
        return seccomp.Arg(position, seccomp.MASKED_EQ, mask, value)

    for error, calls in REFUSED.items():
        for call in calls.split():
            refuse(error, call)
    for flag in NAMESPACE_FLAGS:
        refuse(errno.EPERM, "clone", low(0, flag, flag))
        refuse(errno.EPERM, "unshare", low(0, flag, flag))
    refuse(errno.EPERM, "unshare", low(0, CLONE_NEWTIME, CLONE_NEWTIME))
    for command in TERMINAL_INJECTION:
        refuse(errno.EPERM, "ioctl", low(1, command))
    for request in PTRACE_OF_OTHERS:
        refuse(errno.EPERM, "ptrace", low(0, request))
    # A limit of 0 runs the host's core_pattern program and 1 does not, so the limit stays as it
    # is. Programs that switch their cores off would take an error for a reason to stop.
    rules.add_rule(seccomp.ERRNO(0), "setrlimit", low(0, RLIMIT_CORE))
    rules.add_rule(
        seccomp.ERRNO(0), "prlimit64", low(1, RLIMIT_CORE), seccomp.Arg(2, seccomp.NE, 0)
    )
    _add_sockets(refuse, low, seccomp)


def _add_sockets(refuse: Any, low: Any, seccomp: Any) -> None:
    # Compared as 64 bits: the kernel reads 32, so a family with upper bits set is "greater".
    refuse(errno.EAFNOSUPPORT, "socket", seccomp.Arg(0, seccomp.GT, AF_MAX_KNOWN))
    for family in REFUSED_FAMILIES:
        refuse(errno.EAFNOSUPPORT, "socket", seccomp.Arg(0, seccomp.EQ, family))
    for family in (AF_INET, AF_INET6):
        for kind in (SOCK_RAW, SOCK_PACKET, SOCK_DCCP):
            refuse(errno.EPERM, "socket", low(0, family), low(1, kind, SOCK_TYPE_MASK))
        for protocol in REFUSED_PROTOCOLS:
            refuse(errno.EPROTONOSUPPORT, "socket", low(0, family), low(2, protocol))
    refuse(errno.EPROTONOSUPPORT, "socket", low(0, AF_NETLINK), seccomp.Arg(2, seccomp.NE, 0))
    refuse(errno.EAFNOSUPPORT, "socketpair", seccomp.Arg(0, seccomp.NE, 1))


# BPF opcodes, linux/bpf_common.h: ld abs word, jump if equal / greater / any bit set, return.
LOAD, JEQ, JGT, JSET, RETURN = 0x20, 0x15, 0x25, 0x45, 0x06
AT_NUMBER, AT_ARCH, AT_ARGUMENT_0 = 0, 4, 16  # struct seccomp_data, little endian
ALLOW: Final = 0x7FFF0000
ERRNO: Final = 0x00050000


def _unknown_calls(arches: tuple[Arch, ...]) -> bytes:
    """Refuse what libseccomp cannot express: newer calls, two tests on one argument, socketcall.

    Each architecture is a block that its own test jumps over; any other ends in ENOSYS.
    """
    program: list[tuple[int, int, int, int]] = [(LOAD, 0, 0, AT_ARCH)]
    for arch in arches:
        # i386 and arm pass socket()'s arguments to socketcall by pointer, out of a filter's sight.
        by_pointer = 102 if arch.audit & 0x80000000 == 0 else None
        block = [
            (LOAD, 0, 0, AT_NUMBER),
            *_stop_if(JEQ, OPEN_TREE_ATTR, errno.ENOSYS),
            *_stop_if(JGT, NEWEST_KNOWN_CALL, errno.ENOSYS),
        ]
        if by_pointer is not None:
            socketcall = [(LOAD, 0, 0, AT_ARGUMENT_0), *_stop_if(JEQ, SYS_SOCKET, errno.EPERM)]
            block += [(JEQ, 0, len(socketcall) + 1, by_pointer), *socketcall, (RETURN, 0, 0, ALLOW)]
        block += [
            (JEQ, 1, 0, arch.personality),
            (RETURN, 0, 0, ALLOW),
            (LOAD, 0, 0, AT_ARGUMENT_0),
            (JEQ, 0, 1, PERSONALITY_QUERY),
            (RETURN, 0, 0, ALLOW),
            *_stop_if(JSET, REFUSED_PERSONALITY, errno.EPERM),
            (RETURN, 0, 0, ALLOW),
        ]
        program += [(JEQ, 0, len(block), arch.audit), *block]
    program.append((RETURN, 0, 0, ERRNO | errno.ENOSYS))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


def _stop_if(jump: int, value: int, error: int) -> tuple[tuple[int, int, int, int], ...]:
    return ((jump, 0, 1, value), (RETURN, 0, 0, ERRNO | error))

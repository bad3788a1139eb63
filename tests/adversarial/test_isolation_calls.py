"""Escapes by system call: each is made bare or without the filter, and works; then as built.

Programs for other system call tables are machine code of a few bytes, called through ctypes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import signal
import subprocess
import time

import pytest

from netns_runtime.namespace.filesystem import View
from tests.support.enter import STRANGER, UID_0, python, run, run_bare, without_filter

X86_64 = platform.machine() == "x86_64"
# Ends with the errno of a call, 0 for success.
CALL = (
    "import ctypes,sys,os;l=ctypes.CDLL(None,use_errno=True);"
    "a=[int(x,0) for x in sys.argv[1:]];"
    "r=l.syscall(*map(ctypes.c_long,a));"
    "os._exit(ctypes.get_errno() if r<0 else 0)"
)
SOCKET = (
    "import _socket,sys\n"
    "try: _socket.socket(*map(int,sys.argv[1:]))\n"
    "except OSError as e: sys.exit(e.errno)"
)
# eax=int 0x80 with the four arguments; in memory below 4 GiB, as 32-bit pointers must be.
INT_80 = (
    "import ctypes,sys,struct,os\n"
    "l=ctypes.CDLL(None,use_errno=True);l.mmap.restype=ctypes.c_void_p\n"
    "m=l.mmap(None,4096,7,0x62,-1,0)\n"  # PRIVATE | ANONYMOUS | 32BIT
    "code=b'\\x53\\x89\\xf8\\x49\\x89\\xc9\\x89\\xf3\\x89\\xd6\\x89\\xf1\\x44\\x89\\xca\\xcd\\x80\\x5b\\xc3'\n"
    "ctypes.memmove(m,code,len(code))\n"
    "args=struct.pack('=3I',*map(int,sys.argv[2:5]))\n"
    "ctypes.memmove(m+2048,args,12)\n"
    "f=ctypes.CFUNCTYPE(ctypes.c_int,ctypes.c_uint,ctypes.c_uint,ctypes.c_uint,ctypes.c_uint)(m)\n"
    "a=[int(x,0) for x in sys.argv[5:8]] or [1,m+2048,0]\n"
    "r=f(int(sys.argv[1]),*a)\n"
    "os._exit(-r if r<0 else 0)\n"
)
SYS = {"clone3": 435, "unshare": 272, "setns": 308, "ptrace": 101, "bpf": 321, "keyctl": 250}
UNSHARE_USER = 0x10000000


@pytest.mark.parametrize(
    ("call", "refused"),
    [
        ((SYS["unshare"], UNSHARE_USER), errno.EPERM),
        ((SYS["unshare"], UNSHARE_USER | 0x40000000), errno.EPERM),
        ((SYS["unshare"], 0xFFFFFFFF00000000 - (1 << 64) | UNSHARE_USER), errno.EPERM),
        ((SYS["keyctl"], 0, -3, 1), errno.EPERM),  # KEYCTL_GET_KEYRING_ID of the session
        ((425, 1, 0), errno.EPERM),  # io_uring_setup; bare it fails on the pointer
        ((323, 1), errno.EPERM),  # userfaultfd, user mode only
        ((298, 0, 0, -1, -1, 0), errno.EPERM),  # perf_event_open
        ((310, 1, 0, 0, 0, 0, 0), errno.EPERM),  # process_vm_readv
        ((434 + 4, 0, 0, 0), errno.EPERM),  # pidfd_getfd
        ((467, 0, 0, 0, 0, 0), errno.ENOSYS),  # open_tree_attr
        ((9999,), errno.ENOSYS),
        ((135, 0x0400000), errno.EPERM),  # personality READ_IMPLIES_EXEC
        ((135, 0x80400000), errno.EPERM),
    ],
)
@pytest.mark.skipif(not X86_64, reason="numbers of x86_64")
def test_a_refused_call_is_refused_by_the_filter(call: tuple[int, ...], refused: int) -> None:
    attack = python(CALL, *map(str, call))
    bare = run(attack, change=without_filter)
    assert bare.status != refused or call[0] in (9999, 438, 298), bare
    assert run(attack).status == refused


@pytest.mark.skipif(not X86_64, reason="numbers of x86_64")
def test_personality_can_still_be_asked_for_and_randomisation_switched_off() -> None:
    for value in (0xFFFFFFFF, 0x0040000, 0):
        assert run(python(CALL, "135", str(value))).status == 0


def test_namespaces_cannot_be_made() -> None:
    for options in (["--user"], ["--user", "--net"], ["--user", "--mount", "--map-root-user"]):
        attack = ["unshare", *options, "true"]
        assert run_bare(attack).status == 0
        assert run(attack).status == 1


CLONE = (
    "import ctypes,os,sys,struct;l=ctypes.CDLL(None,use_errno=True)\n"
    "f=int(sys.argv[2],0)\n"
    "a=ctypes.create_string_buffer(struct.pack('=11Q',f,0,0,0,17,0,0,0,0,0,0))\n"
    "r=l.syscall(435,a,ctypes.c_size_t(88)) if sys.argv[1]=='3' else "
    "l.syscall(56,ctypes.c_long(f|17),None,None,None,None)\n"
    "os._exit(0) if r==0 else None\n"
    "e=ctypes.get_errno() if r<0 else 0\n"
    "r>0 and os.waitpid(r,0)\n"
    "os._exit(e)\n"
)


@pytest.mark.skipif(not X86_64, reason="numbers of x86_64")
def test_neither_clone_nor_clone3_makes_a_user_namespace() -> None:
    for version, refused in (("3", errno.ENOSYS), ("1", errno.EPERM)):
        attack = python(CLONE, version, hex(UNSHARE_USER))
        assert run(attack, change=without_filter).status == 0
        assert run(attack).status == refused
    assert run(python(CLONE, "1", "0")).status == 0


@pytest.mark.parametrize(
    ("family", "kind", "protocol", "works_bare_as"),
    [
        (17, 3, 0, UID_0),  # packet
        (17, 2, 0, UID_0),
        (2, 3, 1, UID_0),  # raw ICMP
        (10, 3, 58, UID_0),
        (40, 1, 0, STRANGER),  # vsock
        (16, 3, 15, STRANGER),  # netlink: uevents
        (16, 3, 16, STRANGER),  # generic netlink
        (16, 3, 4, STRANGER),  # socket diagnostics
        (38, 5, 0, None),  # kernel crypto
        (31, 3, 1, None),  # Bluetooth
        (29, 3, 1, None),  # CAN
        (30, 1, 0, None),  # TIPC
        (44, 3, 0, UID_0),  # XDP
        (2, 5, 132, None),  # SCTP
        (2, 1, 256, None),  # SMC
    ],
)
def test_no_socket_but_unix_ip_and_route(
    family: int, kind: int, protocol: int, works_bare_as: object
) -> None:
    attack = python(SOCKET, str(family), str(kind), str(protocol))
    bare = run_bare(attack, identity=UID_0 if works_bare_as is UID_0 else STRANGER)
    if works_bare_as is not None and bare.status != errno.EAFNOSUPPORT:
        assert bare.status == 0, bare
    refusals = (errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT, errno.EPERM)
    for identity in (STRANGER, UID_0):
        assert run(attack, identity=identity).status in refusals


def test_vsock_and_netlink_are_refused_by_the_filter_alone() -> None:
    """The network namespace does not stop them, which is why the filter must."""
    for family, kind, protocol in ((40, 1, 0), (16, 3, 16), (16, 3, 15)):
        attack = python(SOCKET, str(family), str(kind), str(protocol))
        assert run(attack, change=without_filter).status == 0
        assert run(attack).status != 0


def test_ordinary_sockets_work() -> None:
    for family, kind, protocol in ((1, 1, 0), (2, 1, 0), (2, 2, 0), (10, 1, 0), (16, 3, 0)):
        assert run(python(SOCKET, str(family), str(kind), str(protocol))).status == 0
    assert run(python("import _socket;_socket.socketpair()")).status == 0


@pytest.mark.skipif(not X86_64, reason="x86 machine code")
class TestOtherTables:
    """int 0x80 reaches the i386 table from a 64-bit program, and bit 30 the x32 one."""

    def test_socketcall_cannot_make_sockets_whose_arguments_no_filter_sees(self) -> None:
        attack = python(INT_80, "102", "40", "1", "0")
        assert run(attack, change=without_filter).status == 0
        assert run(attack).status == errno.EPERM

    def test_the_i386_table_is_filtered_too(self) -> None:
        for number, arguments, refused in (
            (310, ("0x10000000", "0", "0"), errno.EPERM),  # unshare(CLONE_NEWUSER)
            (359, ("40", "1", "0"), errno.EAFNOSUPPORT),  # socket(AF_VSOCK)
            (26, ("16", "1", "0"), errno.EPERM),  # ptrace(ATTACH)
            (136, ("0x0400000", "0", "0"), errno.EPERM),  # personality
            (467, ("0", "0", "0"), errno.ENOSYS),
        ):
            attack = python(INT_80, str(number), "0", "0", "0", *arguments)
            assert run(attack).status == refused, number
        attack = python(INT_80, "310", "0", "0", "0", "0x10000000", "0", "0")
        assert run(attack, change=without_filter).status == 0
        # getpid, so that what is refused above is not the table as such
        assert run(python(INT_80, "20", "0", "0", "0")).status == 0

    def test_the_x32_table_does_not_exist(self) -> None:
        attack = python(CALL, str(0x40000000 | 39))
        assert run(attack).status == errno.ENOSYS
        attack = python(CALL, str(0x40000000 | SYS["unshare"]), str(UNSHARE_USER))
        assert run(attack).status == errno.ENOSYS


@pytest.mark.skipif(not X86_64, reason="numbers of x86_64")
def test_a_process_cannot_be_attached_to_but_can_be_traced_from_birth() -> None:
    attack = python(
        "import ctypes,os,sys,signal,time\n"
        "l=ctypes.CDLL(None,use_errno=True)\n"
        "p=os.fork()\n"
        "if p==0: time.sleep(20); os._exit(0)\n"
        "r=l.ptrace(int(sys.argv[1],0),p,None,None);e=ctypes.get_errno()\n"
        "os.kill(p,9)\n"
        "os._exit(e if r<0 else 0)\n",
        "0x4206",
    )
    assert run(attack, change=without_filter).status == 0
    assert run(attack).status == errno.EPERM
    assert run(python(CALL, str(SYS["ptrace"]), "0", "0", "0", "0")).status == 0  # TRACEME


def test_the_first_process_keeps_its_memory_and_environment_to_itself() -> None:
    script = (
        "for what in ('mem','environ','maps','fd/0','cwd','auxv'):\n"
        "  try: open(f'/proc/1/{what}','rb').read(1); print(what)\n"
        "  except OSError as e: pass\n"
    )
    for identity in (STRANGER, UID_0):
        assert run(python(script), identity=identity).stdout == ""
        assert "environ" in run(python(script.replace("/1/", "/self/"))).stdout


def test_the_environment_of_the_supervisor_is_nowhere_inside(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SUPERVISORS_SECRET", "hunter2")
    script = "cat /proc/*/environ /proc/*/cmdline 2>/dev/null | tr '\\0' '\\n'"
    for identity in (STRANGER, UID_0):
        outcome = run(["sh", "-c", script], identity=identity)
        assert "PATH=" in outcome.stdout
        assert "hunter2" not in outcome.stdout


def test_ld_preload_of_the_caller_does_not_reach_bubblewrap(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LD_PRELOAD", "/no/such/library.so")
    bare = subprocess.run(["/usr/bin/bwrap", "--version"], capture_output=True, check=False)
    assert b"/no/such/library.so" in bare.stderr
    outcome = run(["true"])
    assert (outcome.status, outcome.stderr) == (0, "")


def test_no_inherited_descriptor_arrives() -> None:
    script = (
        "import os\n"
        "print([os.readlink(f'/proc/self/fd/{n}') for n in os.listdir('/proc/self/fd')"
        " if os.path.lexists(f'/proc/self/fd/{n}')])"
    )
    namespace = os.open("/proc/self/ns/net", os.O_RDONLY)
    read, write = os.pipe()
    try:
        for number in (namespace, read, write):
            os.set_inheritable(number, True)
        bare = run_bare(python(script), close_fds=False).stdout
        assert "net:[" in bare
        assert "pipe:[" in bare
        inside = run(python(script)).stdout
        assert "net:[" not in inside
        assert "pipe:[" not in inside
        assert "memfd" not in inside
        assert "socket:[" not in inside
    finally:
        for number in (namespace, read, write):
            os.close(number)


def test_kill_of_everyone_reaches_nothing_outside() -> None:
    """Bare, as a user who owns no other process here."""
    attack = ["sh", "-c", "kill -KILL -1"]
    for is_bare in (True, False):
        with subprocess.Popen(["sleep", "30"], user=STRANGER.uid, group=STRANGER.gid) as victim:
            try:
                if is_bare:
                    run_bare(attack)
                    assert victim.wait(3) == -signal.SIGKILL
                else:
                    run(attack)
                    assert victim.poll() is None
            finally:
                victim.kill()


def test_kill_of_the_own_group_does_not_reach_the_supervisors() -> None:
    attack = ["sh", "-c", "kill -KILL 0"]
    bare = ["sh", "-c", 'sleep 30 & echo $!; exec >&-; exec "$@"', "sh", *attack]
    neighbour = int(run_bare(bare).stdout)
    assert not os.path.exists(f"/proc/{neighbour}/exe")
    with subprocess.Popen(
        ["sleep", "30"], user=STRANGER.uid, group=STRANGER.gid, process_group=os.getpgrp()
    ) as victim:
        try:
            assert run(attack).status == 137
            assert victim.poll() is None
        finally:
            victim.kill()


def test_a_crash_runs_no_core_handler_of_the_host() -> None:
    pattern = "/proc/sys/kernel/core_pattern"
    marker = "/var/tmp/netns-runtime-core-handler"
    # What an interrupted run may have left says nothing about this one.
    with contextlib.suppress(FileNotFoundError):
        os.unlink(marker)
    with open(pattern) as file:
        before = file.read()
    crash = ["sh", "-c", "ulimit -c 0; kill -SEGV $$"]
    python_crash = python(
        "import resource as r,os\n"
        "r.setrlimit(r.RLIMIT_CORE,(0,0));r.prlimit(0,r.RLIMIT_CORE,(0,0))\n"
        "assert r.getrlimit(r.RLIMIT_CORE)==(1,1);os.kill(os.getpid(),11)"
    )
    python_crash.remove("-S")
    try:
        with open(pattern, "w") as file:
            file.write(f"|/usr/bin/touch {marker}")
        for attack in (crash, python_crash):
            assert run(attack).status == 139
            assert run(attack, identity=UID_0, view=View()).status == 139
        assert not os.path.exists(marker)
        run_bare(crash)
        _wait_for(marker)
    finally:
        with open(pattern, "w") as file:
            file.write(before)
        if os.path.exists(marker):
            os.unlink(marker)


def _wait_for(path: str) -> None:
    deadline = time.monotonic() + 3
    while not os.path.exists(path):
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.01)

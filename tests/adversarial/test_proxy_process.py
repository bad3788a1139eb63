"""The proxy process for real: what it gives up, and that it serves all the same.

Each attack is made by a child that goes through `give_up` (or, to see that it would succeed, does
not). The process itself runs from a copy of the package that its uid cannot read, so an import
after the drop fails here.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from ipaddress import ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dns.message
import dns.rrset
import pytest

import netns_runtime
from netns_runtime import layout
from netns_runtime.config import Limits, ProxyConfig
from netns_runtime.policy import EMPTY, Endpoint, Policy, Rule
from netns_runtime.proxy.admit import ACCESS_DENIED
from tests.support.hellos import real_hello

if TYPE_CHECKING:
    from collections.abc import Iterator

LOOPBACK = (ip_network("127.0.0.0/8"),)
HOSTS = ("127.0.0.1", "up.test", "localhost")


class Running:
    """The process, its control socket, its explicit port and its audit file."""

    def __init__(self, process: subprocess.Popen[bytes], control: socket.socket, port: int) -> None:
        self.process = process
        self.control = control
        self.port = port

    def ask(self, request: bytes, until: bytes = b"\r\n\r\n") -> bytes:
        """What is answered, up to a mark or the end."""
        answer = b""
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as client:
            client.sendall(request)
            while until not in answer and (part := client.recv(65536)):
                answer += part
        return answer

    def told(self, kind: str) -> dict[str, Any]:
        """The next message of that kind."""
        while True:
            message: dict[str, Any] = json.loads(self.control.recv(65536))
            assert message["kind"] != "report", message
            if message["kind"] == kind:
                return message

    def status(self) -> dict[str, str]:
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)


@contextmanager
def running(
    tmp_path: Path, *, unreadable: bool = False, more: dict[str, int] | None = None, **config: Any
) -> Iterator[Running]:
    start = ["-I", "-m", "netns_runtime.proxy"]
    if unreadable:
        copy = tmp_path / "package" / "netns_runtime"
        shutil.copytree(Path(netns_runtime.__file__).parent, copy)
        copy.parent.chmod(0o700)
        run = f"import sys, runpy; sys.path.insert(0, {str(copy.parent)!r});"
        run += "runpy.run_module('netns_runtime.proxy', run_name='__main__')"
        start = ["-I", "-c", run]
    endpoints = tuple(Endpoint(host, None, LOOPBACK) for host in HOSTS)
    settings: dict[str, Any] = {
        "sandbox": "s",
        "policy": Policy((Rule("test rule", endpoints),)),
        "cookie": 1,
        "limits": Limits(flows=50),
        "descriptors": ("explicit", "audit", *(more or {})),
    }
    audit = os.open(tmp_path / "audit", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    here.settimeout(10)
    with socket.create_server(("127.0.0.1", 0)) as listener, here:
        fd = there.fileno()
        process = subprocess.Popen([sys.executable, *start, str(fd)], pass_fds=(fd,))
        try:
            there.close()
            message = pickle.dumps(ProxyConfig(**(settings | config)))
            socket.send_fds(here, [message], [listener.fileno(), audit, *(more or {}).values()])
            assert json.loads(here.recv(4096)) == {"kind": "ready"}
            yield Running(process, here, listener.getsockname()[1])
        finally:
            os.close(audit)
            here.close()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def audited(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / "audit").read_text().splitlines()]


@contextmanager
def upstream() -> Iterator[int]:
    """Serves one fixed response to every connection on loopback."""

    def serve() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            with client, suppress(ConnectionResetError):
                client.recv(4096)
                client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


@contextmanager
def nameserver() -> Iterator[int]:
    def serve() -> None:
        while True:
            data, where = sock.recvfrom(4096)
            if data == b"end":
                return
            query = dns.message.from_wire(data)
            reply = dns.message.make_response(query)
            name = query.question[0].name
            reply.answer.append(dns.rrset.from_text(name, 5, "IN", "CAA", '0 issue "x"'))
            if query.question[0].rdtype == 1:
                reply.answer.append(dns.rrset.from_text(name, 5, "IN", "A", "127.0.0.1"))
            sock.sendto(reply.to_wire(), where)

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield sock.getsockname()[1]
        finally:
            sock.sendto(b"end", sock.getsockname())
            thread.join(5)


def test_the_process_has_no_uid_no_capability_and_a_filter(tmp_path: Path) -> None:
    with running(tmp_path) as proxy:
        status = proxy.status()
        uid = str(layout.PROXY_UID)
        assert status["Uid"].split() == status["Gid"].split() == [uid] * 4
        assert status["Groups"].split() == []
        for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert int(status[kind], 16) == 0
        assert status["NoNewPrivs"] == "1"
        assert status["Seccomp"] == "2"
        # Files of a non-dumpable process belong to root.
        assert Path(f"/proc/{proxy.process.pid}/environ").stat().st_uid == 0
        limits = Path(f"/proc/{proxy.process.pid}/limits").read_text()
        core = next(line for line in limits.splitlines() if "core" in line)
        assert core.split()[4:6] == ["1", "1"]


@pytest.mark.parametrize("own_dns", [True, False])
def test_everything_works_when_nothing_can_be_imported_any_more(
    tmp_path: Path, own_dns: bool
) -> None:
    with nameserver() as dns_port, upstream() as port:
        config: dict[str, Any] = {}
        name = "localhost"
        if own_dns:
            config = {"use_system_resolver": False, "nameservers": (("127.0.0.1", dns_port),)}
            name = "up.test"
        with running(tmp_path, unreadable=True, **config) as proxy:
            assert b" 200 " in proxy.ask(f"CONNECT {name}:{port} HTTP/1.1\r\n\r\n".encode())
            head = "HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
            fetch = f"GET http://{name}:{port}/ {head}\r\n".encode()
            assert proxy.ask(fetch, b"never").endswith(b"\r\n\r\nhi")
            refused = proxy.ask(
                f"GET http://evil.test/ {head}Accept: application/json\r\n\r\n".encode()
            )
            assert b" 403 " in refused
            request = "CONNECT s\u00fcd.test:1 HTTP/1.1\r\n\r\n".encode()
            assert b"xn--sd-xka.test" in proxy.ask(request, b"remedy")
            assert b" 400 " in proxy.ask(b"nonsense\r\n\r\n")
            assert b" 400 " in proxy.ask("CONNECT \u2603..:1 HTTP/1.1\r\n\r\n".encode())
            proxy.control.settimeout(0.1)
            with pytest.raises(TimeoutError):
                raise AssertionError(proxy.control.recv(65536))
            proxy.control.send(b'{"kind":"stop"}')
            assert proxy.process.wait(5) == 0


def test_redirected_flows_dns_and_a_new_policy_need_no_import_either(tmp_path: Path) -> None:
    with (
        upstream() as port,
        socket.create_server(("127.0.0.1", 0)) as transparent,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
    ):
        udp.bind(("127.0.0.1", 0))
        more = {"transparent": transparent.fileno(), "dns_udp": udp.fileno()}
        with running(tmp_path, unreadable=True, more=more) as proxy:
            where = transparent.getsockname()
            # Its own address is the original destination, an address that the policy lists.
            for words, answer in (
                (real_hello("other.test"), ACCESS_DENIED),
                (b"GET / HTTP/1.1\r\nHost: other.test\r\n\r\n", b"HTTP/1.1 403 "),
            ):
                with socket.create_connection(where, timeout=5) as client:
                    client.sendall(words)
                    assert client.recv(len(answer)) == answer
            tunnel = f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\n\r\n".encode()
            request = f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode()
            assert proxy.ask(tunnel + request, b"hi").endswith(b"\r\n\r\nhi")
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.settimeout(5)
                for name, count in (("up.test", 1), ("evil.test", 0)):
                    query = dns.message.make_query(name, "A", use_edns=0)
                    client.sendto(query.to_wire(), udp.getsockname())
                    if not count:
                        asked = proxy.told("owner")
                        assert asked["protocol"] == "udp"
                        reply = {"kind": "owner", "id": asked["id"], "pid": 7, "comm": "dig"}
                        proxy.control.send(json.dumps(reply).encode())
                    assert len(dns.message.from_wire(client.recv(4096)).answer) == count
            with socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as client:
                client.sendall(tunnel)
                assert b" 200 " in client.recv(4096)
                fd = os.memfd_create("policy")
                os.write(fd, pickle.dumps(EMPTY))
                socket.send_fds(proxy.control, [b'{"kind":"policy"}'], [fd])
                os.close(fd)
                assert proxy.told("policy") == {"kind": "policy", "closed": 1}
            assert b" 403 " in proxy.ask(tunnel)
            proxy.control.send(b'{"kind":"stop"}')
            assert proxy.process.wait(5) == 0
    reasons = [line.get("reason") for line in audited(tmp_path)]
    assert {"sni_mismatch", "host_mismatch", "policy_changed"} <= set(reasons)


def test_stop_writes_the_last_line_of_every_flow_and_flows_are_told(tmp_path: Path) -> None:
    with (
        upstream() as port,
        running(tmp_path) as proxy,
        socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as client,
    ):
        client.sendall(f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\n\r\n".encode())
        assert b" 200 " in client.recv(4096)
        proxy.control.send(b'{"kind":"flows","id":7}')
        told = json.loads(proxy.control.recv(1 << 20))
        assert (told["id"], told["more"]) == (7, False)
        assert [flow["host"] for flow in told["flows"]] == ["127.0.0.1"]
        proxy.control.send(b'{"kind":"stop"}')
        assert proxy.process.wait(5) == 0
    assert [line["event"] for line in audited(tmp_path)] == ["flow.decided", "flow.closed"]


def test_the_process_ends_with_its_supervisor(tmp_path: Path) -> None:
    with running(tmp_path) as proxy:
        proxy.control.close()
        assert proxy.process.wait(5) == 0


_ATTACKS = {
    "run a program": "os.posix_spawn('/bin/true', ['true'], {})",
    "fork": "os.fork() or os._exit(0)",
    "write a file": "open({path!r}, 'w')",
    "append to a file": "os.open({path!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT)",
    "open for reading and writing": "os.open('/dev/null', os.O_RDWR)",
    "make a directory": "os.mkdir({path!r})",
    "open a raw socket": "socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)",
    "open a packet socket": "socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM)",
    "open a netlink socket": "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
    "become root again": "os.setuid(0)",
    "signal its parent": "os.kill(os.getppid(), 0)",
    "enter the first namespace": "setns('/proc/self/ns/net')",
    "leave its namespace": "unshare(0x10000000)",
    "create a bpf map": "bpf(0)",
    "trace itself": "ptrace()",
    "use the keyring": "syscall(250, 0, -3, 0)",
    "use io_uring": "syscall(425, 1, 0)",
}
_CHILD = """
import ctypes, os, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
def checked(result):
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
def syscall(*words): checked(libc.syscall(*words))
def setns(path): checked(libc.setns(os.open(path, os.O_RDONLY), 0))
def unshare(flags): checked(libc.unshare(flags))
def bpf(command):
    array = bytes([2,0,0,0, 4,0,0,0, 4,0,0,0, 1,0,0,0])
    attr = ctypes.create_string_buffer(array, 128)
    checked(libc.syscall(321, command, attr, 128))
def ptrace(): checked(libc.ptrace(0, 0, 0, 0))
if {defended}:
    from netns_runtime.proxy.privileges import give_up
    give_up(2000003128, flows=10, parent=os.getppid())
try:
    {attack}
except (OSError, ValueError) as error:
    sys.exit(9)
sys.exit(0)
"""
# io_uring's setup faults on our null argument and its rights differ by machine.
_UNSEEN = {"use io_uring", "use the keyring"}


@pytest.mark.parametrize("attack", _ATTACKS)
def test_what_a_taken_over_proxy_tries_is_refused(attack: str, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    line = _ATTACKS[attack].replace("{path!r}", repr(str(tmp_path / "written")))

    def outcome(defended: bool) -> int:
        code = _CHILD.format(defended=defended, attack=line)
        return subprocess.run([sys.executable, "-c", code], check=False).returncode

    if attack not in _UNSEEN:
        assert outcome(defended=False) == 0
        made = tmp_path / "written"
        if made.is_dir():
            made.rmdir()
    assert outcome(defended=True) == 9

"""`netns-debug capture` and audits, read while hostile code does its worst: what was found so."""

from __future__ import annotations

import json
import os
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import trio

from netns_runtime import processes
from netns_runtime.debug import capturewho, evidence
from netns_runtime.debug.capturefile import open_capture
from netns_runtime.debug.capturewho import SYN, TCP, UDP, Ends, Who, asked_name
from netns_runtime.debug.capturing import Capturing
from netns_runtime.debug.evidence import evidence_of, read_audit
from netns_runtime.errors import UsageError
from netns_runtime.processes import Process
from netns_runtime.proxy.dnspolicy import Resolver53
from netns_runtime.requests import Requests
from netns_runtime.secret import Binding, Slot

if TYPE_CHECKING:
    from pathlib import Path

SECOND = 1_000_000_000
A, B = bytes((127, 0, 0, 1)), bytes((127, 0, 0, 2))


class Anything:
    """Stands for what a request passes on to and nobody looks at here."""

    def __init__(self) -> None:
        self.lent = 0

    def lend(self, message: dict[str, Any], fd: int) -> bool:
        self.lent += 1
        return True

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


def test_a_policy_that_takes_a_value_back_does_not_make_cmd_forget_it() -> None:
    proxy: Any = Anything()
    nothing: Any = Anything()
    requests = Requests(
        gateway=nothing,
        registration=None,
        proxy=proxy,
        identify=lambda policy: policy,
        on_policy=lambda name, bindings: None,
        bindings=(Binding("TOKEN", ("api.test",), (Slot("basic"),), expose="endpoint"),),
    )
    text = "version: 1\nsecrets:\n  TOKEN:\n    hosts: [api.test]\n    slots: [{basic: password}]\n"
    answers: list[dict[str, Any]] = []
    answer: Any = answers.append
    requests.handle({"command": "policy", "name": "p.yaml", "text": text}, answer)
    assert answers == []
    requests.handle({"command": "capture"}, answer)
    assert [list(each) for each in answers] == [["error"]]
    assert "CMD can have the value of TOKEN itself" in answers[0]["error"]
    assert proxy.lent == 0


@pytest.mark.parametrize("name", ["link/f", "real/../link/f", "./link/f"])
def test_a_link_on_a_relative_way_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="a link is on the way"):
        open_capture(name)
    assert not list((tmp_path / "real").iterdir())
    open_capture("real/f").close()
    open_capture("f").close()
    assert (tmp_path / "real" / "f").exists()


def test_a_directory_that_root_inside_sees_does_not_get_its_values(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="sees that directory"):
        open_capture(str(tmp_path / "f"), unseen_by=os.getpid())
    assert not list(tmp_path.iterdir())


# --- whose ---


@pytest.fixture
def holders(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[bytes, int], Process]:
    """Who has which address and port inside, as /proc would have it."""
    found: dict[tuple[bytes, int], Process] = {}

    def sockets(protocol: str, port: int, address: bytes = b"") -> Any:
        return (address, port)

    monkeypatch.setattr(capturewho, "sockets_at", sockets)
    monkeypatch.setattr("netns_runtime.namespace.netns.run_in", lambda fd, what: what())
    monkeypatch.setattr(capturewho, "holder_of", lambda inodes, pids: found.get(inodes))
    monkeypatch.setattr(capturewho, "members_of", lambda cgroup: [])
    return found


def new_who() -> Who:
    record: Any = SimpleNamespace(cgroup="/nowhere")
    return Who(record, -1, None)


def local(who: Who, ends: Ends, when: int) -> str:
    who.see(ends, when, is_loopback=True)
    return who.remark(ends, when, b"", is_loopback=True)


def test_who_takes_a_port_of_udp_s_later_is_not_taken_for_who_had_it(
    holders: dict[tuple[bytes, int], Process],
) -> None:
    who = new_who()
    ends = Ends(UDP, A, 5000, A, 6000)
    holders[A, 5000] = Process(1, "first", None)
    assert local(who, ends, SECOND).startswith("first (pid 1)")
    holders[A, 5000] = Process(2, "second", None)
    assert local(who, ends, 3 * SECOND).startswith("second (pid 2)")


def test_who_listens_later_is_not_taken_for_who_listened(
    holders: dict[tuple[bytes, int], Process],
) -> None:
    who = new_who()
    first, again = (Ends(TCP, A, port, A, 8080, SYN) for port in (5000, 5001))
    holders[A, 8080] = Process(1, "first", None)
    assert "first (pid 1), inside" in local(who, first, SECOND)
    holders[A, 8080] = Process(2, "second", None)
    assert "second (pid 2), inside" in local(who, again, 3 * SECOND)
    assert "second (pid 2), inside" in local(who, first._replace(flags=0x10), 3 * SECOND)


def test_one_port_at_two_addresses_has_two_owners(
    holders: dict[tuple[bytes, int], Process],
) -> None:
    who = new_who()
    holders[A, 8080], holders[B, 8080] = Process(1, "good", None), Process(2, "evil", None)
    assert "good (pid 1), inside" in local(who, Ends(TCP, A, 5000, A, 8080, SYN), SECOND)
    assert "evil (pid 2), inside" in local(who, Ends(TCP, A, 5001, B, 8080, SYN), SECOND)


def test_a_sandbox_that_is_slow_to_look_through_does_not_hold_the_capture_up(
    holders: dict[tuple[bytes, int], Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    looks = []

    def slow(cgroup: object) -> list[int]:
        clock[0] += 0.15
        looks.append(cgroup)
        return []

    monkeypatch.setattr(capturewho, "members_of", slow)
    monkeypatch.setattr(capturewho, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    who = new_who()
    for port in range(1000, 1200):
        local(who, Ends(UDP, A, port, A, 6000), SECOND)
    assert len(looks) == 2


@pytest.mark.parametrize("comm", ["sh (pid 1) ->", "a, /bin/x) -> h"])
def test_a_name_cannot_pass_for_the_words_around_it(comm: str) -> None:
    text = capturewho.named_of({"pid": 7, "comm": comm, "exe": "/x (pid 1), y"})
    assert text == f'"{comm}" (pid 7, "/x (pid 1), y")'


def test_flows_of_many_connections_are_not_kept_without_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(capturewho, "CONNECTIONS", 100)
    who = new_who()
    for port in range(1, 60):
        for number in range(70):
            who.told(
                {"flow": number, "at": number, "client": ["10.200.0.1", 3128, "10.200.0.2", port]}
            )
    kept = sum(len(known.flows) for known in who._known.values())
    assert 60 <= kept <= 100
    syn = Ends(TCP, bytes((10, 200, 0, 2)), 59, bytes((10, 200, 0, 1)), 3128, SYN)
    who.see(syn, SECOND, is_loopback=False)
    assert sum(len(known.flows) for known in who._known.values()) == who._flows


def test_a_name_s_length_is_that_of_a_name() -> None:
    data = bytes(12) + b"\x01a" * 30_000
    assert len(asked_name(data, 0)) < 260
    begun = time.perf_counter()
    for _ in range(20):
        asked_name(data, 0)
    assert time.perf_counter() - begun < 0.05


def test_the_flow_s_number_is_as_printable_as_all_else() -> None:
    who = new_who()
    client = ["10.200.0.1", 3128, "10.200.0.2", 9]
    who.told({"flow": "\x1b]0;x\n", "at": 1, "client": client})
    ends = Ends(TCP, bytes((10, 200, 0, 2)), 9, bytes((10, 200, 0, 1)), 3128)
    assert who.remark(ends, SECOND, b"", is_loopback=False).isprintable()


def test_an_event_of_the_future_does_not_wait_for_it() -> None:
    capturing = Capturing.__new__(Capturing)
    capturing.summary = SimpleNamespace(events_lost=0, refused=0)  # type: ignore[assignment]
    capturing._who = new_who()
    capturing._held = []
    event = {"event": "connect.refused", "time": "9999-01-01T00:00:00Z", "action": "refuse"}
    capturing._from_feed({"event": event})
    assert capturing._held[0].when <= time.time_ns()


def test_who_asks_and_is_gone_is_not_taken_for_who_had_the_port_before() -> None:
    told: list[tuple[object, ...]] = []
    tap = SimpleNamespace(asked=lambda *words: told.append(words))

    async def nobody(protocol: str, port: int) -> None:
        return None

    limits = SimpleNamespace(owner=1.0, owners=1)
    resolver: Any = SimpleNamespace(_asking=0, _owner_of=nobody, limits=limits, tap=tap)
    assert trio.run(Resolver53.asker, resolver, "udp", 5353) is None
    assert told == [("udp", 5353, None)]
    who = new_who()
    before = {"asked": ["udp", 5353], "pid": 4, "comm": "dig"}
    ends = Ends(UDP, bytes((10, 200, 0, 2)), 5353, bytes((10, 200, 0, 1)), 53)
    query = bytes(12) + b"\x02no\x04test\x00\x00\x01\x00\x01"
    for message in ({**before, "at": SECOND}, {"asked": ["udp", 5353], "at": SECOND + 9}):
        who.told(message)
    said = who.remark(ends, SECOND + 8, query, is_loopback=False)
    assert said == "an unknown process -> policy DNS: no.test"


# --- an audit that somebody else wrote ---


def test_events_as_large_as_they_may_be_do_not_fill_the_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(evidence, "ROOM", 3_000_000)
    nested = '{"event":"flow.decided","z":[' + "[]," * 9000 + "[]]}\n"
    flat = json.dumps({"event": "flow.decided", "time": "x" * 40}) + "\n"
    found = evidence_of([nested.encode()] * 5 + [flat.encode()] * 3, "audit x")
    assert len(found.events) == 4
    assert found.lost == 4
    assert "only the newest 4 of 8 events are looked at" in found.notes


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/null", "/dev/urandom"])
def test_a_device_is_no_audit(tmp_path: Path, device: str) -> None:
    (tmp_path / "audit").symlink_to(device)
    with pytest.raises(UsageError, match="is a device"):
        read_audit(str(tmp_path / "audit"))


def test_an_audit_that_grows_as_fast_as_it_is_read_has_an_end(tmp_path: Path) -> None:
    line = b'{"event":"flow.decided"}\n'
    path = tmp_path / "audit"
    path.write_bytes(line * 3)

    class Growing:
        def __init__(self) -> None:
            self.left = 1000

        def readline(self, size: int) -> bytes:
            self.left -= 1
            return line if self.left else b""

    assert len(list(evidence._lines(Growing(), 3 * len(line)))) == 3
    assert len(read_audit(str(path)).events) == 3


def test_a_socket_s_place_is_read_as_the_kernel_prints_it() -> None:
    import socket

    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other,
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as mapped,
    ):
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
        other.bind(("127.0.0.2", port))
        mapped.bind(("::ffff:127.0.0.3", port))
        inodes = [os.fstat(sock.fileno()).st_ino for sock in (one, other, mapped)]
        for inode, last in zip(inodes, (1, 2, 3), strict=True):
            address = bytes((127, 0, 0, last))
            assert processes.sockets_at("udp", port, address) == {inode}
        assert processes.sockets_at("udp", port, bytes((127, 0, 0, 9))) == frozenset()
        assert processes.sockets_at("udp", port) >= set(inodes)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as every:
        every.bind(("0.0.0.0", 0))
        found = processes.sockets_at("udp", every.getsockname()[1], A)
        assert found == {os.fstat(every.fileno()).st_ino}

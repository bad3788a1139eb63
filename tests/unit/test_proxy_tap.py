"""What the proxy tells those who capture: nothing while nobody does, and never by waiting."""

from __future__ import annotations

import errno
import json
import os
import socket
import ssl
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from netns_runtime.policy import load_policy
from netns_runtime.proxy.ca import Authority
from netns_runtime.proxy.keylog import Keylog
from netns_runtime.proxy.secure import rootless_context
from netns_runtime.proxy.tap import READERS, Tap
from tests.support.proxy_stage import Stage, play, read_until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

POLICY = b"""
version: 1
network_policies:
  inspected:
    endpoints:
      - {host: up.test, ports: [1], protocol: rest, access: full, allowed_ips: [127.0.0.0/8]}
  skipped:
    endpoints:
      - {host: skip.test, ports: [1], tls: skip, allowed_ips: [127.0.0.0/8]}
"""
READS = {"terminates": True, "upstream": False}
GET = b"GET /a HTTP/1.1\r\nHost: up.test:%d\r\n\r\n"
LABELS = {
    "CLIENT_HANDSHAKE_TRAFFIC_SECRET",
    "SERVER_HANDSHAKE_TRAFFIC_SECRET",
    "CLIENT_TRAFFIC_SECRET_0",
    "SERVER_TRAFFIC_SECRET_0",
}


@cache
def outside() -> Authority:
    return Authority()


@cache
def inside() -> Authority:
    return Authority()


def trusting(authority: Authority, context: ssl.SSLContext | None = None) -> ssl.SSLContext:
    context = context or ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=authority.pem.decode())
    return context


def shake_hands(server: ssl.SSLContext, client: ssl.SSLContext, host: str = "up.test") -> Any:
    """Both ends of a handshake in memory; the client's."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    served = server.wrap_bio(up, down, server_side=True)
    asked = client.wrap_bio(down, up, server_hostname=host)
    for _ in range(4):
        for side in (asked, served):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    return asked


@pytest.fixture
def keylog() -> Iterator[Keylog]:
    made = Keylog()
    yield made
    made.close()


def labels_of(lines: str) -> set[str]:
    return {line.split()[0] for line in lines.splitlines()}


# --- the keys ---


def test_a_handshake_tells_its_keys_once_and_leaves_none(keylog: Keylog) -> None:
    told: list[tuple[str, bool]] = []
    keylog.took = lambda lines, is_upstream: told.append((lines, is_upstream))
    context = keylog.server_context(inside(), "up.test", "http/1.1")
    shake_hands(context, trusting(inside()))
    lines = "".join(text for text, _ in told)
    assert labels_of(lines) >= LABELS
    assert len({line.split()[1] for line in lines.splitlines()}) == 1, "one client random"
    assert not any(is_upstream for _, is_upstream in told)
    assert [os.fstat(fd).st_size for fd in keylog._fds] == [0, 0]


def test_tls_1_2_tells_its_master_secret(keylog: Keylog) -> None:
    told: list[str] = []
    keylog.took = lambda lines, _: told.append(lines)
    client = trusting(inside())
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    shake_hands(keylog.server_context(inside(), "up.test", None), client)
    assert labels_of("".join(told)) == {"CLIENT_RANDOM"}


def test_a_connection_keeps_the_leaf_that_it_was_made_with(keylog: Keylog) -> None:
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    first = keylog.server_context(inside(), "one.test", "h2")
    served = first.wrap_bio(up, down, server_side=True)
    assert keylog.server_context(inside(), "two.test", "h2") is first
    asked = trusting(inside()).wrap_bio(down, up, server_hostname="one.test")
    for side in (asked, served, asked):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
    certificate: Any = asked.getpeercert()
    assert certificate["subjectAltName"] == (("DNS", "one.test"),)


@pytest.mark.parametrize("alpn", ["h2", "http/1.1", None])
def test_what_is_offered_is_what_the_ordinary_context_offers(
    keylog: Keylog, alpn: str | None
) -> None:
    chosen = []
    for server in (
        keylog.server_context(inside(), "up.test", alpn),
        inside().context_for("up.test", alpn),
    ):
        client = trusting(inside())
        client.set_alpn_protocols(["h2", "http/1.1"])
        asked = shake_hands(server, client)
        chosen.append((asked.selected_alpn_protocol(), asked.version(), asked.cipher()))
        assert server.options & ssl.OP_NO_RENEGOTIATION
        assert server.num_tickets == 0
    assert chosen[0] == chosen[1]
    assert chosen[0][0] == alpn


def test_upstream_s_context_wants_every_root_that_the_ordinary_one_has(keylog: Keylog) -> None:
    like = rootless_context()
    like.set_default_verify_paths()
    like.load_verify_locations(cadata=outside().pem.decode())
    assert keylog.client_context(like) is None, "it has not heard of --upstream-ca"
    again = Keylog()
    again.upstream_ca = outside().pem
    found = again.client_context(like)
    assert found is not None
    assert found.verify_mode is like.verify_mode is ssl.CERT_REQUIRED
    assert (found.verify_flags, found.minimum_version) == (like.verify_flags, like.minimum_version)
    assert found.check_hostname
    again.close()


# --- the readers ---


class Capturer:
    """The other end, as `netns-debug capture` has it."""

    def __init__(self, stage: Stage, *, secrets: bool = False) -> None:
        self.sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        assert stage.sandbox.tap is not None
        stage.sandbox.tap.add(stage.sandbox, theirs.fileno(), secrets)
        theirs.close()
        self.sock.setblocking(False)
        self.seen: list[dict[str, Any]] = []

    def heard(self) -> list[dict[str, Any]]:
        try:
            while data := self.sock.recv(1 << 20):
                self.seen.append(json.loads(data))
        except BlockingIOError:
            pass
        return self.seen

    def keys(self) -> str:
        return "".join(message.get("keys", "") for message in self.heard())


@contextmanager
def tapped(stage: Stage) -> Iterator[None]:
    keylog = Keylog()
    keylog.upstream_ca = outside().pem
    upstream = trusting(outside(), rootless_context())
    stage.sandbox.authority, stage.sandbox.upstream_context = inside(), upstream
    stage.sandbox.tap = Tap(keylog)
    yield
    keylog.close()


def staged(scenario: Callable[[Stage, int], Awaitable[None]]) -> Stage:
    stage = Stage()
    server = outside().context_for("up.test", "http/1.1")

    async def upstream(stream: trio.SocketStream) -> None:
        secure = trio.SSLStream(stream, server, server_side=True, https_compatible=True)
        try:
            async for _ in secure:
                await secure.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return

    async def run(stage: Stage, nursery: trio.Nursery) -> None:
        port = await stage.upstream(nursery, upstream)
        policy = load_policy(POLICY.replace(b"[1]", b"[%d]" % port), "test.yaml")
        stage.sandbox.config = replace(stage.sandbox.config, policy=policy)
        await scenario(stage, port)
        await stage.settled()

    stage.names.table["skip.test"] = ("127.0.0.1",)
    with tapped(stage):
        play(run, stage=stage)
    assert not stage.reports, stage.reports
    return stage


async def request(stage: Stage, port: int) -> None:
    """One request over a terminated tunnel."""
    async with stage.tunnel(port) as stream:
        secure = trio.SSLStream(
            stream, trusting(inside()), server_hostname="up.test", https_compatible=True
        )
        await secure.send_all(GET % port)
        await read_until(secure, b"ok")  # type: ignore[arg-type]
        await secure.aclose()


def test_a_capture_hears_of_the_flow_and_of_its_keys_before_they_are_used() -> None:
    async def scenario(stage: Stage, port: int) -> None:
        capturer = Capturer(stage)
        assert capturer.heard() == [{"began": True, "open": 0, **READS}]
        await request(stage, port)
        _, decided, *rest = capturer.heard()
        assert (decided["flow"], decided["host"], decided["terminated"]) == (1, "up.test", True)
        assert decided["client"][:2] == list(stage.address)
        assert labels_of(capturer.keys()) >= LABELS
        assert not any("dialling" in message for message in rest)
        capturer.sock.close()

    staged(scenario)


def test_without_a_capture_no_handshake_is_logged() -> None:
    async def scenario(stage: Stage, port: int) -> None:
        tap = stage.sandbox.tap
        assert tap is not None
        ordinary = stage.sandbox.context_to_client("up.test", "http/1.1")
        assert ordinary is inside().context_for("up.test", "http/1.1")
        assert not ordinary.keylog_filename
        assert stage.sandbox.context_to_upstream() is stage.sandbox.upstream_context
        capturer = Capturer(stage)
        assert stage.sandbox.context_to_client("up.test", "http/1.1") is not ordinary
        assert stage.sandbox.context_to_upstream() is stage.sandbox.upstream_context
        capturer.sock.close()
        await trio.testing.wait_all_tasks_blocked(0.001)
        assert stage.sandbox.context_to_client("up.test", "http/1.1") is ordinary
        await request(stage, port)

    staged(scenario)


def test_upstream_s_keys_are_for_who_asked_for_secrets_alone() -> None:
    async def scenario(stage: Stage, port: int) -> None:
        plain, whole = Capturer(stage), Capturer(stage, secrets=True)
        await request(stage, port)
        assert whole.heard()[0]["upstream"] is True
        dialled = [message["dialling"] for message in whole.seen if "dialling" in message]
        assert [ends[2:] for ends in dialled] == [["127.0.0.1", port]]
        opened = next(message for message in whole.seen if message.get("opened"))
        assert opened["upstream"] == dialled[0]
        randoms = [
            {line.split()[1] for line in reader.keys().splitlines()} for reader in (plain, whole)
        ]
        assert (len(randoms[0]), len(randoms[1])) == (1, 2)
        assert randoms[0] < randoms[1]
        assert not any("dialling" in message for message in plain.heard())
        whole.sock.close()
        plain.sock.close()

    staged(scenario)


def test_flows_that_were_open_before_are_counted() -> None:
    async def scenario(stage: Stage, port: int) -> None:
        async with stage.tunnel(port) as stream, stage.tunnel(port, "skip.test"):
            secure = trio.SSLStream(
                stream, trusting(inside()), server_hostname="up.test", https_compatible=True
            )
            await secure.do_handshake()
            capturer = Capturer(stage)
            began, *flows = capturer.heard()
            assert began["open"] == 1, "the tunnel is not ours to read anyway"
            assert [(flow["host"], flow["before"]) for flow in flows] == [
                ("up.test", True),
                ("skip.test", True),
            ]
            assert flows[1]["unread"] == "tls: skip"
            capturer.sock.close()

    staged(scenario)


def test_a_reader_that_stalls_holds_nobody_up_and_is_told_what_it_lost() -> None:
    async def scenario(stage: Stage, port: int) -> None:
        capturer = Capturer(stage)
        tap: Any = stage.sandbox.tap
        (reader,) = tap._readers
        reader.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        told = 0
        while not reader.lost:
            tap._tell({"flow": told})
            told += 1
        await request(stage, port)
        lost = reader.lost
        assert lost > 1
        capturer.heard()
        tap._tell({"flow": told})
        assert capturer.heard()[-1] == {"flow": told, "lost": lost}
        tap._tell({"flow": told})
        assert "lost" not in capturer.heard()[-1]
        capturer.sock.close()

    staged(scenario)


def test_past_so_many_readers_another_is_told_why_not() -> None:
    async def scenario(stage: Stage, _port: int) -> None:
        readers = [Capturer(stage) for _ in range(READERS)]
        late = Capturer(stage)
        assert late.heard() == [{"error": f"{READERS} others capture this sandbox already"}]
        for reader in (*readers, late):
            reader.sock.close()

    staged(scenario)


def test_a_sandbox_without_an_authority_tells_flows_and_no_keys() -> None:
    async def scenario(stage: Stage, _nursery: trio.Nursery) -> None:
        await trio.testing.wait_all_tasks_blocked()
        stage.sandbox.tap = Tap()
        capturer = Capturer(stage, secrets=True)
        await stage.ask(b"CONNECT nobody.test:443 HTTP/1.1\r\n\r\n", end=True)
        began, flow = capturer.heard()
        assert (began["terminates"], began["upstream"]) == (False, False)
        assert (flow["host"], flow["action"]) == ("nobody.test", "refuse")
        capturer.sock.close()

    play(scenario)


def test_a_capture_for_which_no_descriptor_is_left_ends_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(_: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "dup", full)
    tap = Tap()
    nobody: Any = None
    tap.add(nobody, 0, secrets=False)
    assert not tap.is_on

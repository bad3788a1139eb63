"""Real HTTP/2 clients and servers on both sides of a terminated flow, on loopback."""

from __future__ import annotations

import resource
import ssl
import struct
import subprocess
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import trio
import trustme
from hpack import Encoder

from netns_runtime.policy import load_policy
from netns_runtime.proxy.ca import Authority
from netns_runtime.proxy.http2_limits import PREFACE
from netns_runtime.proxy.secure import upstream_context
from tests.support.clients import SCRIPTS, python
from tests.support.proxy_stage import Stage, play

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

POLICY = """
version: 1
network_policies:
  inspected:
    endpoints:
      - host: up.test
        port: %d
        protocol: rest
        access: full
        allowed_ips: [127.0.0.0/8]
        deny_rules:
          - {method: "*", path: "/secret/**"}
          - {method: POST, path: "/lab.Lab/Denied"}
"""


def frame(kind: int, flags: int = 0, number: int = 0, content: bytes = b"") -> bytes:
    size = len(content)
    return struct.pack(">HBBBL", size >> 8, size & 255, kind, flags, number) + content


class Place:
    """Files of certificates, and the roots that a client is given."""

    def __init__(self, path: Path) -> None:
        outside, self.inside = trustme.CA(), Authority()
        self.roots, self.certificate, self.key = path / "roots", path / "cert", path / "key"
        self.roots.write_bytes(self.inside.pem)
        issued = outside.issue_cert("up.test")
        self.certificate.write_bytes(b"".join(part.bytes() for part in issued.cert_chain_pems))
        self.key.write_bytes(issued.private_key_pem.bytes())
        self.context = upstream_context()
        outside.configure_trust(self.context)

    @asynccontextmanager
    async def server(self, stage: Stage, *command: str) -> AsyncIterator[int]:
        """Run a server, whose port is given, and let the sandbox reach it."""
        words = [*command, str(self.certificate), str(self.key)]
        process = await trio.lowlevel.open_process(words, stdout=subprocess.PIPE)
        try:
            assert process.stdout is not None
            port = int(await process.stdout.receive_some(16))
            stage.sandbox.authority = self.inside
            stage.sandbox.upstream_context = self.context
            policy = load_policy((POLICY % port).encode(), "test.yaml")
            stage.sandbox.config = replace(stage.sandbox.config, policy=policy)
            yield port
        finally:
            process.kill()
            await process.wait()


async def told(*command: str) -> str:
    done = await trio.run_process(
        command,
        capture_stdout=True,
        capture_stderr=True,
        check=False,
        env={"PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().strip()


def played(scenario: Callable[[Stage], Awaitable[None]]) -> Stage:
    async def run(stage: Stage, nursery: trio.Nursery) -> None:
        await scenario(stage)
        await stage.settled()

    stage = play(run)
    assert stage.reports == []
    return stage


def proxy_of(stage: Stage) -> str:
    return f"http://{stage.address[0]}:{stage.address[1]}"


def curl_of(stage: Stage, place: Place) -> list[str]:
    words = ["curl", "-sS", "--http2", "--max-time", "8", "--cacert", str(place.roots)]
    return [*words, "--proxy", proxy_of(stage)]


NODE_SERVER = ("node", str(SCRIPTS / "node/http2_server.js"))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_curl_asks_over_http2(place: Place) -> None:
    async def scenario(stage: Stage) -> None:
        async with place.server(stage, *NODE_SERVER) as port:
            url = f"https://up.test:{port}"
            options = ["-w", " %{http_version} %{http_code}"]
            curl = [*curl_of(stage, place), *options]
            answers = await told(*curl, f"{url}/a", f"{url}/b?x=1", f"{url}/secret/1")
            assert answers.startswith("/a 2 200/b?x=1 2 200netns-runtime refused")
            assert answers.endswith(" 2 403")
            size = await told(*curl, "-d", "x" * 100_000, f"{url}/size")
            assert size == "100000 2 200"

    stage = played(scenario)
    lines = stage.of("http.request")
    assert [line["path"] for line in lines] == ["/a", "/b?x", "/secret/1", "/size"]
    assert [line["said_by"] for line in lines] == ["upstream", "upstream", "policy", "upstream"]
    assert {line["protocol"] for line in lines} == {"h2"}


def test_node_asks_over_http2_and_ignores_the_proxy(place: Place) -> None:
    async def scenario(stage: Stage) -> None:
        async with place.server(stage, *NODE_SERVER) as port:
            stage.transparent.destination = ("198.18.0.1", port)
            host, listening = super(type(stage.transparent), stage.transparent).getsockname()
            script = ("node", str(SCRIPTS / "node/http2_client.js"), f"up.test:{port}")
            assert await told(*script, host, str(listening), str(place.roots)) == "OK"

    stage = played(scenario)
    assert {line["entry"] for line in stage.of("http.request")} == {"redirected"}
    closed = stage.of("flow.closed")[0]
    assert min(closed["bytes_in"], closed["bytes_out"]) > 10 << 20


def test_httpx_asks_fifty_at_once(place: Place) -> None:
    async def scenario(stage: Stage) -> None:
        async with place.server(stage, *NODE_SERVER) as port:
            script = python("get_http2_httpx.py")
            url = f"https://up.test:{port}"
            assert await told(*script, url, proxy_of(stage), str(place.roots)) == "HTTP/2 50"

    assert len(played(scenario).of("http.request")) == 53


def test_grpc_calls_of_every_kind(place: Place) -> None:
    async def scenario(stage: Stage) -> None:
        async with place.server(stage, *python("grpc_server.py")) as port:
            client = (*python("grpc_client.py"), f"up.test:{port}")
            assert await told(*client, proxy_of(stage), str(place.roots)) == "OK"

    stage = played(scenario)
    lines = stage.of("http.request")
    assert {line["path"] for line in lines} == {
        f"/lab.Lab/{name}" for name in ("Echo", "Talk", "Count", "Fail")
    }
    assert all(line["action"] == "allow" for line in lines)


def test_a_grpc_call_that_policy_refuses_fails_as_such(place: Place) -> None:
    async def scenario(stage: Stage) -> None:
        async with place.server(stage, *python("grpc_server.py")) as port:
            text = (POLICY % port).replace("/lab.Lab/Denied", "/lab.Lab/Echo")
            policy = load_policy(text.encode(), "test.yaml")
            stage.sandbox.config = replace(stage.sandbox.config, policy=policy)
            client = (*python("grpc_client.py"), f"up.test:{port}", proxy_of(stage))
            said = await told(*client, str(place.roots), "PERMISSION_DENIED")
            assert said.startswith("OK")

    [line] = played(scenario).of("http.request")
    assert (line["status"], line["said_by"]) == (403, "policy")


async def attack(stage: Stage, place: Place, port: int, content: bytes) -> None:
    """Send it over a connection of its own, and do not read."""
    async with stage.tunnel(port) as stream:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(place.roots)
        context.set_alpn_protocols(["h2"])
        secure = trio.SSLStream(stream, context, server_hostname="up.test", https_compatible=True)
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            for at in range(0, len(content), 65_536):
                await secure.send_all(content[at : at + 65_536])
            await secure.receive_some(1)


def attacks() -> dict[str, bytes]:
    """What each of the known floods sends, about a megabyte."""
    begin = PREFACE + frame(4)
    block = Encoder().encode(
        [(":method", "GET"), (":scheme", "https"), (":authority", "up.test"), (":path", "/a")]
    )
    resets, asked = b"", frame(1, 5, 1, block)
    for number in range(1, 20_000, 2):
        indexed = b"\x82\x87" + block[2:]
        resets += frame(1, 5, number, indexed) + frame(3, 0, number, bytes(4))
    return {
        "rapid reset": begin + resets,
        "CONTINUATION": begin + frame(1, 0, 1, block) + frame(9, 0, 1) * 100_000,
        "PING": begin + frame(6, 0, 0, bytes(8)) * 60_000,
        "SETTINGS": begin + frame(4) * 100_000,
        "empty DATA": begin + frame(1, 4, 1, block) + frame(0, 0, 1) * 100_000,
        "PRIORITY": begin + asked + frame(2, 0, 3, bytes(5)) * 70_000,
    }


def test_attackers_do_not_keep_others_waiting_nor_fill_the_memory(place: Place) -> None:
    took = []

    async def scenario(stage: Stage) -> None:
        async with place.server(stage, *NODE_SERVER) as port:
            curl = [*curl_of(stage, place), f"https://up.test:{port}/a"]
            assert await told(*curl) == "/a"
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            async with trio.open_nursery() as nursery:
                for content in attacks().values():
                    for _ in range(3):
                        nursery.start_soon(attack, stage, place, port, content)
                for _ in range(3):
                    started = trio.current_time()
                    assert await told(*curl) == "/a"
                    took.append(trio.current_time() - started)
            after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            assert (after - before) * 1024 < 64 << 20

    stage = played(scenario)
    ended = [line for line in stage.of("flow.closed") if "ENHANCE_YOUR_CALM" in str(line)]
    assert len(ended) == 18
    assert max(took) < 4

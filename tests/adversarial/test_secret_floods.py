"""Too much of everything on a terminated connection: the proxy's memory stays within MOST.

MOST is the peak resident set of the proxy process (VmHWM), of which some 70 MiB are Python and what
it imports. While one flow misbehaves, another one of the same sandbox is served.
"""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support import search
from tests.support.run import CLIENT_PYTHON
from tests.support.secret_policy import TOKEN, policy_in
from tests.support.secret_run import started, value_of

if TYPE_CHECKING:
    from tests.support.lab import Lab

MIB = 1 << 20
MOST = 192 * MIB
OTHER = "curl -sS --max-time 10 https://other.test/"


def peak_of(pid: int) -> int:
    """Bytes: the most that was ever resident."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def flood(lab: Lab, directory: Path, command: str) -> str:
    """Run a shell command and somebody else's request; what they said. The peak is checked."""
    values = {TOKEN: value_of(TOKEN)}
    script = f"{command}; {OTHER}; echo search me; read line"
    policy = ("--policy", policy_in(directory))
    with started(lab, values, policy, ["sh", "-c", script], stdin=-1) as (running, _):
        said = ""
        while (line := running.line()) not in ("search me\n", ""):
            said += line
        pids = search.proxy_pids(running.process.pid)
        peaks = [peak_of(pid) for pid in pids]
        result = running.wait(30, b"\n")
    assert peaks, result.told()
    assert max(peaks) < MOST, f"{[peak // MIB for peak in peaks]} MiB: {result.told()}"
    assert "hello from other.test" in said, said + result.told()
    return said


def test_a_zip_bomb_from_upstream(lab: Lab, tmp_path: Path) -> None:
    url = "https://web.lab.test/bomb/256"
    command = f"curl -sS -o /dev/null -w 'got %{{size_download}}\\n' --compressed {url}"
    assert "got " in flood(lab, tmp_path, command)


def test_a_zip_bomb_from_inside(lab: Lab, tmp_path: Path) -> None:
    packed = zlib.compressobj(9, wbits=31)
    with (lab.work / "bomb.gz").open("wb") as file:
        for _ in range(256):
            file.write(packed.compress(bytes(MIB)))
        file.write(packed.flush())
    command = (
        "curl -sS -o /dev/null -w 'got %{http_code}\\n' -H 'Content-Type: application/json' "
        f"-H 'Content-Encoding: gzip' --data-binary @{lab.work}/bomb.gz "
        "https://web.lab.test/status/200"
    )
    assert "got " in flood(lab, tmp_path, command)


def test_a_bomb_within_a_json_string_of_a_slot(lab: Lab, tmp_path: Path) -> None:
    text = b'{"token": "' + b"x" * (64 * MIB) + b'"}'
    (lab.work / "long.gz").write_bytes(gzip.compress(text, 1))
    command = (
        "curl -sS -o /dev/null -w 'got %{http_code}\\n' -H 'Content-Type: application/json' "
        f"-H 'Content-Encoding: gzip' --data-binary @{lab.work}/long.gz "
        "https://web.lab.test/status/200"
    )
    assert "got " in flood(lab, tmp_path, command)


def test_json_that_is_nested_without_end(lab: Lab, tmp_path: Path) -> None:
    (lab.work / "deep.json").write_bytes(b'{"deep":' + b"[" * (8 * MIB))
    command = (
        "curl -sS -o /dev/null -w 'got %{http_code}\\n' -H 'Content-Type: application/json' "
        f"--data-binary @{lab.work}/deep.json https://web.lab.test/status/200"
    )
    assert "got " in flood(lab, tmp_path, command)


def test_a_head_of_100_megabytes_from_upstream(lab: Lab, tmp_path: Path) -> None:
    url = "https://web.lab.test/headers/100"
    said = flood(lab, tmp_path, f"curl -sS -o /dev/null -w 'got %{{http_code}}\\n' {url}")
    assert "got 502" in said, said


HEAD = """
import socket, ssl, sys
context = ssl.create_default_context()
with socket.create_connection(("web.lab.test", 443)) as plain:
    with context.wrap_socket(plain, server_hostname="web.lab.test") as tls:
        tls.sendall(b"GET / HTTP/1.1\\r\\nHost: web.lab.test\\r\\n")
        try:
            for number in range(100 * 1024 // 8):
                tls.sendall(b"x-%06d: " % number + b"h" * 8180 + b"\\r\\n")
        except OSError:
            pass
        try:
            print("answered", tls.recv(100).split(b"\\r\\n")[0].decode() or "with the end")
        except OSError as error:
            print("answered", type(error).__name__)
"""


def test_a_head_of_100_megabytes_from_inside(lab: Lab, tmp_path: Path) -> None:
    (lab.work / "head.py").write_text(HEAD)
    said = flood(lab, tmp_path, f"/usr/bin/python3 {lab.work}/head.py")
    assert "answered" in said, said
    assert " 200" not in said, said


NEVER = """
import itertools, sys
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

compression = None if sys.argv[1] == "plain" else "deflate"
with connect("wss://ws.lab.test/swallow", compression=compression, close_timeout=1) as socket:
    begin = '{"op": 2, "d": {"token": "openshell:resolve:env:LAB_TOKEN", "text": "'
    more = itertools.repeat("x" * 65536, 32 * 16)
    try:
        socket.send(itertools.chain([begin], more))
        print("got all of it")
    except ConnectionClosed as closed:
        print("got", closed.rcvd and closed.rcvd.code)
"""


@pytest.mark.parametrize("how", ["plain", "deflated"])
def test_a_fragment_that_never_ends(lab: Lab, tmp_path: Path, how: str) -> None:
    (lab.work / "never.py").write_text(NEVER)
    said = flood(lab, tmp_path, f"{CLIENT_PYTHON} {lab.work}/never.py {how}")
    assert "got " in said, said


@pytest.mark.parametrize("slot", ["form", "json"])
def test_a_name_that_never_ends(lab: Lab, tmp_path: Path, slot: str) -> None:
    kind = {"form": "application/x-www-form-urlencoded", "json": "application/json"}[slot]
    begin = {"form": b"", "json": b'{"'}[slot]
    (lab.work / "name").write_bytes(begin + b"token" * (12 * MIB))
    command = (
        f"curl -sS -o /dev/null -w 'got %{{http_code}}\\n' -H 'Content-Type: {kind}' "
        f"--data-binary @{lab.work}/name https://web.lab.test/status/200"
    )
    assert "got " in flood(lab, tmp_path, command)

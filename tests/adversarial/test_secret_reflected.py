"""Upstream repeats what it was sent: every way in which the value could come back with a response.

Nothing that CMD gets may hold it, and the response stays well-formed: a client that checks lengths
and codings reads it to its end.
"""

from __future__ import annotations

import gzip
import json
import zlib
from typing import TYPE_CHECKING

import pytest

from tests.support.search import says
from tests.support.secret_policy import TOKEN, policy_in
from tests.support.secret_run import placeholder, plain_value_of, run_with_secrets, value_of

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.lab import Lab

HELD = placeholder(TOKEN)
VERSIONS = pytest.mark.parametrize(
    ("host", "version"), [("web.lab.test", "--http1.1"), ("h2.lab.test", "--http2")]
)
HEADER = ("-H", f"Authorization: Bearer {HELD}")


@pytest.fixture
def policy(tmp_path: Path) -> str:
    return policy_in(tmp_path)


@VERSIONS
@pytest.mark.parametrize("query", ["", "piece=1", "piece=13", "header=1"])
@pytest.mark.parametrize("coding", ["", "gzip", "deflate"])
def test_an_error_page_comes_back_with_the_placeholder(
    lab: Lab, policy: str, host: str, version: str, query: str, coding: str
) -> None:
    values = {TOKEN: value_of(TOKEN)}
    url = f"https://{host}/reflect/500?{query}&coding={coding}"
    command = [
        "curl",
        "-sS",
        "--compressed",
        "-i",
        "--suppress-connect-headers",
        version,
        *HEADER,
        url,
    ]
    told = run_with_secrets(lab, values, "--policy", policy, cmd=command)
    assert told.result.status == 0, told.result.told()
    head, _, page = told.result.stdout.replace("\r\n", "\n").partition("\n\n")
    assert " 500" in head.splitlines()[0], told.result.told()
    assert ["authorization", f"Bearer {HELD}"] in json.loads(page)["headers"], told.result.told()
    if query == "header=1":
        assert f"x-reflected: Bearer {HELD}" in head, told.result.told()
    assert says(json.dumps(lab.requests_seen()), values[TOKEN]), "the value did not get there"


@pytest.mark.parametrize(
    ("words", "path"),
    [
        (("-u", f"me:{HELD}"), "/reflect/401"),
        ((), f"/reflect/404?token={HELD}"),
        ((), f"/reflect/{HELD}"),
        (("-d", f"token={HELD}"), "/reflect/500"),
        (
            ("-H", "Content-Type: application/json", "-d", json.dumps({"token": HELD})),
            "/reflect/400",
        ),
    ],
    ids=["basic", "query", "path", "form", "json"],
)
def test_each_dress_of_the_value_is_known_again(
    lab: Lab, policy: str, words: tuple[str, ...], path: str
) -> None:
    values = {TOKEN: value_of(TOKEN)}
    command = ["curl", "-sS", *words, f"https://web.lab.test{path}"]
    told = run_with_secrets(lab, values, "--policy", policy, cmd=command)
    assert told.result.status == 0, told.result.told()
    assert says(json.dumps(lab.requests_seen()), values[TOKEN]), "the value did not get there"


def test_a_coding_that_cannot_be_opened_is_not_passed_on(lab: Lab, policy: str) -> None:
    values = {TOKEN: value_of(TOKEN)}
    command = [
        *("curl", "-sS", "-i", "--suppress-connect-headers", *HEADER),
        "https://web.lab.test/reflect/500?coding=unknown",
    ]
    told = run_with_secrets(lab, values, "--policy", policy, cmd=command)
    assert " 502" in told.result.stdout.splitlines()[0], told.result.told()
    # The lab's coding is the page backwards.
    assert values[TOKEN][::-1] not in told.result.stdout


def test_upstream_is_asked_for_codings_that_can_be_opened(lab: Lab, policy: str) -> None:
    command = ["curl", "-sS", "-H", "Accept-Encoding: br, zstd, gzip", *HEADER]
    told = run_with_secrets(
        *(lab, {TOKEN: value_of(TOKEN)}, "--policy", policy),
        cmd=[*command, "https://web.lab.test/"],
    )
    headers = dict(lab.requests_seen()[0]["headers"])
    asked = headers.get("accept-encoding", "")
    assert "gzip" in asked, told.result.told()
    assert "br" not in asked, told.result.told()
    assert "zstd" not in asked, told.result.told()


def test_a_client_that_opens_gzip_itself_finds_no_value_in_it(lab: Lab, policy: str) -> None:
    values = {TOKEN: value_of(TOKEN)}
    out = lab.work / "reflected.gz"
    out.unlink(missing_ok=True)
    command = ["curl", "-sS", "-o", str(out), "-H", "Accept-Encoding: gzip", *HEADER]
    told = run_with_secrets(
        *(lab, values, "--policy", policy),
        cmd=[*command, "https://web.lab.test/reflect/500?coding=gzip"],
    )
    data = out.read_bytes()
    try:
        page = gzip.decompress(data)
    except gzip.BadGzipFile:
        page = data
    assert not says(page, values[TOKEN]), told.result.told()
    assert says(page, HELD), told.result.told()


def test_a_refused_handshake_that_repeats_the_token_is_masked(lab: Lab, policy: str) -> None:
    values = {TOKEN: value_of(TOKEN)}
    command = [
        *(
            "curl",
            "-sS",
            "-i",
            "--suppress-connect-headers",
            "--http1.1",
            *HEADER,
            "-H",
            "Connection: upgrade",
        ),
        *("-H", "Upgrade: websocket", "-H", "Sec-WebSocket-Version: 13"),
        *("-H", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="),
        "https://web.lab.test/upgrade/401",
    ]
    told = run_with_secrets(lab, values, "--policy", policy, cmd=command)
    assert " 401" in told.result.stdout.splitlines()[0], told.result.told()


def test_what_is_no_value_comes_through_bit_by_bit(lab: Lab, policy: str) -> None:
    """Masking holds back what might become the value: all of it arrives in the end."""
    value = "ab" * 20
    body = b"".join((b"ab" * n + b"x") for n in range(60))
    (lab.www / "near.bin").write_bytes(body)
    out = lab.work / "near.out"
    command = ["curl", "-sS", "-o", str(out), "https://web.lab.test/files/near.bin"]
    run_with_secrets(lab, {TOKEN: value}, "--policy", policy, cmd=command)
    masked = body.replace(value.encode(), HELD.encode())
    assert zlib.crc32(out.read_bytes()) == zlib.crc32(masked)


DRIP = """
import socket, ssl, sys
for text in sys.argv[1:]:
    context = ssl.create_default_context()
    plain = socket.create_connection(("web.lab.test", 443))
    with context.wrap_socket(plain, server_hostname="web.lab.test") as tls:
        request = f"GET /drip/0.6?text={text} HTTP/1.1\\r\\nHost: web.lab.test\\r\\n\\r\\n"
        tls.sendall(request.encode())
        tls.settimeout(0.3)
        got = b""
        try:
            while more := tls.recv(9999):
                got += more
        except TimeoutError:
            pass
        print(len(got.partition(b"\\r\\n\\r\\n")[2]), flush=True)
"""


@pytest.mark.parametrize("known", [0, 1, 5, 20])
def test_what_is_held_back_does_not_tell_a_right_guess_from_a_wrong_one(
    lab: Lab, policy: str, known: int
) -> None:
    """Else an upstream that streams what it is asked to would give the value away bit by bit."""
    value = plain_value_of(TOKEN)
    wrong = "g"
    guesses = [f"guess.{value[:known]}{last}" for last in (value[known], wrong)]
    told = run_with_secrets(
        *(lab, {TOKEN: value}, "--policy", policy),
        cmd=["/usr/bin/python3", "-c", DRIP, *guesses],
    )
    right, other = told.result.stdout.split()
    assert right == other, told.result.stdout

"""The token is asked for where it does not belong: outside a slot, and by another host.

Outside a slot the placeholder passes untouched and the request is not refused; to a host that the
secret is not bound to it passes as it is, and the audit says that the value was withheld. Every run
is checked for the value in all that it said (`run_with_secrets`).
"""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest

from tests.support.search import says
from tests.support.secret_policy import LONGER, TOKEN, policy_in
from tests.support.secret_run import Told, placeholder, run_with_secrets, value_of

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.lab import Lab

HELD = placeholder(TOKEN)
CURL = ["curl", "-sS", "--max-time", "10"]
VERSIONS = pytest.mark.parametrize(
    ("host", "version"), [("web.lab.test", "--http1.1"), ("h2.lab.test", "--http2")]
)
JSON = ("-H", "Content-Type: application/json")


@pytest.fixture
def policy(tmp_path: Path) -> str:
    return policy_in(tmp_path)


def ask(lab: Lab, policy: str, *words: str, values: dict[str, str] | None = None) -> Told:
    values = values or {TOKEN: value_of(TOKEN)}
    return run_with_secrets(lab, values, "--policy", policy, cmd=[*CURL, *words])


def arrived(lab: Lab, value: str) -> list[dict[str, Any]]:
    """The requests in which the value reached somebody, in any form."""
    return [seen for seen in lab.requests_seen() if says(json.dumps(seen), value)]


def seen_once(lab: Lab, told: Told) -> dict[str, Any]:
    requests = lab.requests_seen()
    assert len(requests) == 1, told.result.told()
    return requests[0]


@dataclass(frozen=True)
class Place:
    """curl's words with `{}` for the placeholder; `kept` is what arrives as it was written."""

    name: str
    words: tuple[str, ...]
    path: str = "/echo"
    kept: str = HELD


def document(value: Any) -> str:
    return json.dumps(value).replace("@", HELD)


PLACES = [
    Place("a chat message", (*JSON, "-d", document({"channel": "C1", "text": "my token is @"}))),
    Place("a message beside the slot", (*JSON, "-d", document({"text": "@", "other": "@"}))),
    Place("a pointer that is longer", (*JSON, "-d", document({"token": {"token": "@"}}))),
    Place("a list where an object is bound", (*JSON, "-d", document([{"token": "@"}]))),
    Place("a deeper namesake", (*JSON, "-d", document({"x": {"token": "@"}}))),
    Place("a member's name", (*JSON, "-d", document({"@": "token"}))),
    Place("plain text", ("-H", "Content-Type: text/plain", "-d", f"token={HELD}")),
    Place("another part of a multipart form", ("-F", f"text={HELD}")),
    Place("a part's file name", ("-F", f"text=x;filename={HELD}")),
    Place("another form field", ("--data-urlencode", f"text={HELD}"), kept=quote(HELD, safe="")),
    Place(
        "a form field's name", ("-d", f"{quote(HELD, safe='')}=token"), kept=quote(HELD, safe="")
    ),
    Place("another header", ("-H", f"X-Note: {HELD}")),
    Place(
        "a header's name", ("-H", f"{HELD}: token"), kept="openshell: resolve:env:LAB_TOKEN: token"
    ),
    Place("the user agent", ("-A", HELD)),
    Place("a cookie", ("-b", f"token={HELD}")),
    Place("another parameter", (), path=f"/echo?text={HELD}"),
    Place("a parameter's name", (), path=f"/echo?{HELD}=token"),
    Place("another segment", (), path=f"/echo/a/b/{HELD}"),
    Place("the fragment of a referer", ("-e", f"https://web.lab.test/#{HELD}")),
]


@VERSIONS
@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.name)
def test_outside_a_slot_the_placeholder_passes_untouched(
    lab: Lab, policy: str, place: Place, host: str, version: str
) -> None:
    if place.name == "a header's name" and version == "--http2":
        # A colon ends a field's name: here it would be another pseudo-header.
        return
    values = {TOKEN: value_of(TOKEN)}
    told = ask(lab, policy, version, *place.words, f"https://{host}{place.path}", values=values)
    assert told.result.status == 0, told.result.told()
    seen = seen_once(lab, told)
    headers = "\n".join(f"{name}: {value}" for name, value in seen["headers"])
    whole = "\n".join((seen["target"], headers, seen["body"]))
    assert place.kept.lower() in whole.lower(), whole
    assert arrived(lab, values[TOKEN]) == [], told.result.told()
    assert told.substituted() == set(), told.result.told()


SLOTS = [
    (("-H", f"Authorization: Bearer {HELD}"), "/echo", "header authorization"),
    (("-H", f"X-TOKEN: {HELD}"), "/echo", "header x-token"),
    (("-u", f"me:{HELD}"), "/echo", "basic password"),
    ((), f"/echo?a=1&token={quote(HELD, safe='')}&b=2", "query token"),
    ((), f"/echo/{HELD}", "path 1"),
    (("-d", f"a=1&token={quote(HELD, safe='')}"), "/echo", "form token"),
    (("-F", f"token={HELD}", "-F", f"text={HELD}"), "/echo", "form token"),
    ((*JSON, "-d", document({"token": "@", "text": "@"})), "/echo", "json /token"),
    ((*JSON, "-d", document({"deep": [{"token": "@"}]})), "/echo", "json /deep/0/token"),
]


@VERSIONS
@pytest.mark.parametrize(("words", "path", "slot"), SLOTS, ids=[slot for _, _, slot in SLOTS])
def test_in_each_kind_of_slot_the_value_arrives_escaped_and_comes_back_as_the_placeholder(
    lab: Lab, policy: str, words: tuple[str, ...], path: str, slot: str, host: str, version: str
) -> None:
    values = {TOKEN: value_of(TOKEN)}
    told = ask(lab, policy, version, *words, f"https://{host}{path}", values=values)
    assert len(arrived(lab, values[TOKEN])) == 1, told.result.told()
    assert told.substituted() == {(TOKEN, slot, host)}, told.result.told()
    # /echo repeats the request: what came back is what was asked with.
    echoed = json.loads(told.result.stdout)
    assert says(json.dumps(echoed), HELD) or HELD in path or "-u" in words, told.result.told()


def test_a_json_value_is_escaped_for_its_string(lab: Lab, policy: str) -> None:
    value = 'quo"te back\\slash ünïcode </tag>'
    body = document({"token": "@", "text": "@"})
    told = ask(lab, policy, *JSON, "-d", body, "https://web.lab.test/echo", values={TOKEN: value})
    seen = seen_once(lab, told)
    parsed = json.loads(seen["body"].encode("latin-1"))
    assert parsed == {"token": value, "text": HELD}, seen


@pytest.mark.parametrize("host", ["other.test", "api.lab.test"])
@pytest.mark.parametrize(("words", "path", "slot"), SLOTS, ids=[slot for _, _, slot in SLOTS])
def test_another_hosts_request_gets_the_placeholder_and_the_audit_says_so(
    lab: Lab, policy: str, words: tuple[str, ...], path: str, slot: str, host: str
) -> None:
    values = {TOKEN: value_of(TOKEN)}
    told = ask(lab, policy, *words, f"https://{host}{path}", values=values)
    assert told.result.status == 0, told.result.told()
    assert arrived(lab, values[TOKEN]) == [], told.result.told()
    assert lab.placeholders_seen() != [], told.result.told()
    assert told.substituted() == set(), told.result.told()
    withheld = told.result.events("secret.withheld")
    assert {(line["secret"], line["host"]) for line in withheld} == {(TOKEN, host)}, withheld


def test_a_longer_name_is_another_secret(lab: Lab, policy: str) -> None:
    values = {TOKEN: value_of(TOKEN), LONGER: value_of(LONGER)}
    words = ("-H", f"X-Token: {placeholder(LONGER)}", "https://web.lab.test/echo")
    told = ask(lab, policy, *words, values=values)
    headers = dict(seen_once(lab, told)["headers"])
    assert headers["x-token"] == placeholder(LONGER), headers
    assert told.substituted() == set(), told.result.told()


def test_a_name_that_nothing_binds_passes_untouched(lab: Lab, policy: str) -> None:
    words = ("-H", "X-Token: openshell:resolve:env:LAB_TOKENS", "https://web.lab.test/echo")
    told = ask(lab, policy, *words)
    headers = dict(seen_once(lab, told)["headers"])
    assert headers["x-token"] == "openshell:resolve:env:LAB_TOKENS", headers


@VERSIONS
def test_a_url_that_is_redirected_gives_the_next_host_a_placeholder(
    lab: Lab, policy: str, host: str, version: str
) -> None:
    values = {TOKEN: value_of(TOKEN)}
    url = f"https://{host}/redirect/other.test/landed?token={HELD}"
    told = ask(lab, policy, version, "-L", "-D", "/dev/stderr", url, values=values)
    assert told.result.status == 0, told.result.told()
    first, second = lab.requests_seen()
    assert says(first["target"], values[TOKEN]), told.result.told()
    assert second["host"] == "other.test", told.result.told()
    assert says(second["target"], HELD), told.result.told()
    assert not says(json.dumps(second), values[TOKEN]), told.result.told()
    assert "location: https://other.test/echo/landed?token=openshell" in (
        told.result.stderr.lower()
    ), told.result.told()


@VERSIONS
@pytest.mark.parametrize("size", [1, 7, 4096])
def test_a_body_in_pieces_is_read_as_one(
    lab: Lab, policy: str, host: str, version: str, size: int
) -> None:
    values = {TOKEN: value_of(TOKEN)}
    script = (
        "import http.client, os, ssl, sys, time\n"
        f"body = (b'text=x&token={quote(HELD, safe='')}&more=' + b'y' * 3000)\n"
        f"pieces = [body[at:at + {size}] for at in range(0, len(body), {size})]\n"
        f"c = http.client.HTTPSConnection('{host}')\n"
        "c.request('POST', '/echo', iter(pieces), "
        "{'Content-Type': 'application/x-www-form-urlencoded'}, encode_chunked=True)\n"
        "print(c.getresponse().read().decode())\n"
    )
    told = run_with_secrets(lab, values, "--policy", policy, cmd=["/usr/bin/python3", "-c", script])
    assert told.result.status == 0, told.result.told()
    assert len(arrived(lab, values[TOKEN])) == 1, told.result.told()
    assert seen_once(lab, told)["body"].endswith("&more=" + "y" * 3000)


def test_a_compressed_body_is_opened_where_the_coding_is_declared(lab: Lab, policy: str) -> None:
    values = {TOKEN: value_of(TOKEN)}
    body = lab.work / "body.gz"
    body.write_bytes(gzip.compress(document({"token": "@", "text": "@"}).encode()))
    words = (*JSON, "-H", "Content-Encoding: gzip", "--data-binary", f"@{body}")
    told = ask(lab, policy, *words, "https://web.lab.test/echo", values=values)
    seen = seen_once(lab, told)
    opened = json.loads(gzip.decompress(seen["body"].encode("latin-1")))
    assert opened == {"token": values[TOKEN], "text": HELD}, told.result.told()


def test_a_compressed_body_that_lies_about_its_coding_is_not_a_way_in(
    lab: Lab, policy: str
) -> None:
    body = lab.work / "lie"
    body.write_bytes(document({"token": "@"}).encode())
    words = (*JSON, "-H", "Content-Encoding: gzip", "--data-binary", f"@{body}")
    values = {TOKEN: value_of(TOKEN)}
    told = ask(lab, policy, *words, "https://web.lab.test/echo", values=values)
    assert arrived(lab, values[TOKEN]) == [], told.result.told()
    assert told.substituted() == set(), told.result.told()


def test_a_value_never_ends_a_line_or_a_header(lab: Lab, policy: str) -> None:
    values = {TOKEN: "one\r\nX-Injected: two"}
    told = ask(lab, policy, "https://web.lab.test/echo", values=values)
    assert told.result.status == 125, told.result.told()
    assert TOKEN in told.result.stderr, told.result.told()
    assert lab.requests_seen() == []

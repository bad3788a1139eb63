"""Attacks on `netns-debug report`: an audit is full of words that the sandbox chose, and the page
is written by root to a place that somebody may have prepared."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import resource
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.lab import CHECKOUT
from tests.support.report_page import read
from tests.support.run import netns_debug

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

BASE: dict[str, Any] = {"sandbox": "box", "pid": 7, "host": "api.test", "port": 443}
LARGEST_PAGE = 3_000_000
PAYLOADS = (
    "<script>alert(1)</script>",
    '"onload="alert(1)',
    "'><img src=x onerror=alert(1)>",
    "</title></style></textarea></svg><script>alert(1)</script>",
    "--></details><iframe src=javascript:alert(1)>",
    "javascript:alert(1)",
    "]]><svg/onload=alert(1)>",
    "{{7*7}}${7*7}",
    "&lt;script&gt;&#x3c;script&#62;",
    "\u202egnp.exe\u2066\u200b\u200d\ufeff",
    "\x00\x07\x1b[31m\x9b\r\n\u2028",
    "\ud800 lone",
    "url(https://evil.test/x)",
    "x" * 30_000,
    "\u202e" * 5_000,
)


def stamp(number: float) -> str:
    return f"2026-11-21T08:{int(number) // 60 % 60:02}:{number % 60:09.6f}Z"


def write(path: Path, events: Iterable[dict[str, Any]]) -> Path:
    with path.open("w") as file:
        for at, event in enumerate(events):
            file.write(json.dumps({"time": stamp(at / 10), **BASE, **event}) + "\n")
    return path


def everything(word: str) -> list[dict[str, Any]]:
    """Each event there is, with the word in each field that can hold one."""
    text = dict.fromkeys(
        ("sandbox", "comm", "exe", "host", "address", "entry", "protocol", "detail", "remedy"), word
    )
    text |= dict.fromkeys(("rule", "reason", "said_by", "method", "path", "secret", "slot"), word)
    text |= dict.fromkeys(("command", "probe", "origin", "offered", "chosen", "server"), word)
    kinds = (
        *("sandbox.started", "connect.refused", "dns.refused", "dns.answered", "flow.decided"),
        *("http.request", "ws.opened", "secret.substituted", "secret.withheld", "ws.message"),
        *("ws.closed", "flow.closed", "publish.request", "sandbox.exited", word or "none"),
    )
    found = [
        {"event": kind, **text, "flow": number, "code": 4004, "status": 403, "action": "refuse"}
        for number, kind in enumerate(kinds)
    ]
    same = {**text, "flow": 99, "protocol": "websocket", "host": "ws.test"}
    found += [{"event": "flow.decided", **same, "action": "allow"}]
    found += [{"event": "http.request", **same, "status": 101}, {"event": "ws.opened", **same}]
    found += [{"event": "ws.closed", **same, "code": 1006, "bytes_in": 1, "duration_ms": 2.5}]
    return [*found, {"event": "flow.closed", **same, "reason": word}]


def report(path: Path, page: Path, *words: str, timeout: float = 60) -> str:
    done = netns_debug("report", str(path), "-o", str(page), *words, timeout=timeout)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return page.read_text("utf-8")


@pytest.mark.parametrize("word", PAYLOADS, ids=range(len(PAYLOADS)))
def test_no_word_of_an_audit_becomes_markup(word: str, tmp_path: Path) -> None:
    html = report(write(tmp_path / "audit", everything(word)), tmp_path / "page.html")
    page = read(html)
    assert not page.elements.keys() & {"script", "img", "iframe", "object", "embed", "link", "base"}
    assert not page.attributes & {"style", "src", "onload", "onerror"}
    assert page.elements["style"] == 1
    assert page.elements["main"] == 1
    assert set(page.links) <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert html.isprintable() or not set(html) & {*map(chr, range(32)), "\x7f", "\u202e"} - {"\n"}
    assert not any(0xD800 <= ord(c) < 0xE000 or 0x80 <= ord(c) < 0xA0 for c in html)
    assert len(html) < 300_000


def test_the_policy_of_the_page_lets_in_its_own_style_and_nothing_else(tmp_path: Path) -> None:
    html = report(write(tmp_path / "audit", everything("<b>")), tmp_path / "page.html")
    page = read(html)
    digest = base64.b64encode(hashlib.sha256(page.style.encode()).digest()).decode()
    assert page.metas["content-security-policy"].split("; ") == [
        *("default-src 'none'", f"style-src 'sha256-{digest}'", "base-uri 'none'"),
        "form-action 'none'",
    ]
    assert html.index("Content-Security-Policy") < html.index("<style>")
    assert "url(" not in page.style
    assert "@import" not in page.style


def test_numbers_that_no_clock_or_sum_takes_are_left_out(tmp_path: Path) -> None:
    wrong = ("NaN", "Infinity", "-1e999", "1" + "0" * 4000, '"7"', "true", "null", "[1]", "-5")
    lines = []
    keys = ("bytes_in", "bytes_out", "duration_ms", "idle_ms", "count", "port", "status", "code")
    for number, value in enumerate(wrong):
        for kind in ("flow.decided", "http.request", "ws.opened", "ws.closed", "flow.closed"):
            event = {"event": kind, "time": stamp(number), **BASE, "flow": number}
            fields = "".join(f',"{key}":{value}' for key in (*keys, "messages_in", "pid"))
            lines.append(json.dumps(event | {"protocol": "websocket"})[:-1] + fields + "}\n")
        for kind in ("connect.refused", "dns.refused", "sandbox.exited", "sandbox.started"):
            fields = "".join(f',"{key}":{value}' for key in (*keys, "counted_bpf", "uid"))
            event = {"event": kind, "time": stamp(number), **BASE}
            lines.append(json.dumps(event)[:-1] + fields + "}\n")
    times = ("", "now", "2026", "9999-12-31T23:59:59Z", "-0001-01-01T00:00:00Z", "2026-13-45T99")
    lines += [json.dumps({"event": "dns.refused", **BASE, "time": t}) + "\n" for t in times]
    (tmp_path / "audit").write_text("".join(lines))
    read(report(tmp_path / "audit", tmp_path / "page.html"))
    assert json.loads(netns_debug("report", str(tmp_path / "audit"), "--json").stdout)


def test_a_field_of_ten_megabytes_is_counted_and_not_told(tmp_path: Path) -> None:
    events = [{"event": "dns.refused", "comm": "x" * 10_000_000}, {"event": "dns.refused"}]
    html = report(write(tmp_path / "audit", events), tmp_path / "page.html")
    assert "1 line is no audit event" in read(html).text
    assert len(html) < 100_000


def _flood() -> Iterable[dict[str, Any]]:
    """Two hundred thousand events: names, paths, processes and flows that all differ."""
    for n in range(80_000):
        yield {"event": "connect.refused", "address": f"203.0.{n >> 8 & 255}.{n & 255}",
               "port": n % 65535 + 1, "reason": "direct_tcp", "comm": f"c{n % 1000}", "host": None,
               "action": "refuse", "said_by": "sandbox", "protocol": "tcp"}  # fmt: skip
    for n in range(40_000):
        yield {"event": "dns.refused", "host": f"{n:x}.tunnel.test", "action": "refuse",
               "reason": "name_not_allowed", "said_by": "policy", "port": None}  # fmt: skip
    for n in range(12_000):
        both = {"flow": n, "host": f"h{n % 3000}.test", "comm": "node", "protocol": "websocket"}
        yield {"event": "flow.decided", **both, "action": "allow", "said_by": "policy"}
        path = {"method": "GET", "path": f"/{n}/" + "p" * 90}
        yield {"event": "http.request", **both, **path, "status": 101, "said_by": "upstream"}
        yield {"event": "ws.opened", **both}
        code = 4000 + n % 900
        yield {"event": "ws.closed", **both, "code": code, "said_by": "upstream", "idle_ms": 60000}
        yield {"event": "flow.closed", **both, "bytes_in": 5, "bytes_out": 7}
    for n in range(20_000):
        yield {"event": "http.request", "flow": 14_000, "method": f"M{n}", "path": f"/{n}",
               "status": 403, "action": "refuse", "reason": "http_request_denied",
               "said_by": "policy"}  # fmt: skip


def test_a_flood_of_events_makes_a_page_of_bounded_size(tmp_path: Path) -> None:
    audit = write(tmp_path / "audit", _flood())
    html = report(audit, tmp_path / "page.html", timeout=120)
    page = read(html)
    size = len(html.encode())
    assert size < LARGEST_PAGE
    assert "attempts beyond the first 5000 different ones are counted" in page.text
    assert "earlier WebSockets are counted and not explained" in page.text
    assert set(page.links) <= set(page.ids)


def test_a_page_never_takes_the_place_of_its_audit(tmp_path: Path) -> None:
    audit = write(tmp_path / "audit", [{"event": "dns.refused"}])
    before = audit.read_bytes()
    (tmp_path / "other").hardlink_to(audit)
    for target in (audit, tmp_path / "other"):
        done = netns_debug("report", str(audit), "-o", str(target))
        assert done.returncode == 125
        assert "is the audit itself" in done.stderr
    assert audit.read_bytes() == before


OURS = f"import sys; sys.path.insert(0, {str(CHECKOUT)!r})\n"
WRITE = OURS + (
    "from netns_runtime.debug.report.output import check, write\n"
    "from netns_runtime.errors import NetnsError\n"
    "try:\n check(sys.argv[1]); write(sys.argv[1], b'the page')\n"
    "except NetnsError as error:\n sys.exit(f'refused: {error}')\n"
)


def put(target: Path | str, cwd: Path | None = None, **options: Any) -> str:
    """What `write` says: "" where it wrote."""
    done = subprocess.run(
        [sys.executable, "-c", WRITE, str(target)],
        capture_output=True,
        text=True,
        timeout=20,
        cwd=cwd,
        env={key: value for key, value in os.environ.items() if key != "SUDO_UID"},
        check=False,
        **options,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return str(done.stderr).strip()


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """A directory that somebody else owns, as CMD's caller does."""
    place = tmp_path / "theirs"
    place.mkdir()
    os.chown(place, 65534, 65534)
    return place


def names(place: Path) -> list[str]:
    return sorted(os.listdir(place))


def test_writes_through_no_link_at_the_end(theirs: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    (theirs / "page.html").symlink_to(victim)
    (theirs / "dangling.html").symlink_to(tmp_path / "new")
    for name in ("page.html", "dangling.html"):
        assert "there is a link" in put(theirs / name)
    assert victim.read_text() == "untouched"
    assert not (tmp_path / "new").exists()
    assert names(theirs) == ["dangling.html", "page.html"]


def test_follows_no_link_on_the_way_that_others_can_set(theirs: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    link = theirs / "out"
    link.symlink_to(tmp_path / "secret")
    assert "a link that others can set" in put(link / "page.html")
    os.chown(link, 65534, 65534, follow_symlinks=False)
    assert "a link that others can set" in put(link / "page.html")
    sticky = tmp_path / "sticky"
    sticky.mkdir()
    sticky.chmod(0o1777)
    (sticky / "out").symlink_to(tmp_path / "secret")
    os.chown(sticky / "out", 65534, 65534, follow_symlinks=False)
    assert "a link that others can set" in put(sticky / "out" / "page.html")
    assert names(tmp_path / "secret") == []


def test_follows_a_link_that_root_alone_could_make(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "way").symlink_to("real")
    assert put(tmp_path / "way" / "page.html") == ""
    assert (tmp_path / "real" / "page.html").read_text() == "the page"
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert "refused: report: -o" in put(tmp_path / "a" / "page.html")


def test_replaces_only_a_regular_file_of_the_caller_s(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert put(page) == ""
    assert page.stat().st_mode & 0o777 == 0o644
    page.write_text("an older one")
    assert put("page.html", cwd=tmp_path) == ""
    assert page.read_text() == "the page"
    os.chown(page, 65534, 65534)
    assert "belongs to uid 65534" in put(page)
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "directory").mkdir()
    for name in ("fifo", "directory"):
        assert "no regular file" in put(tmp_path / name)
    for name in ("directory/", ".", "..", "no/such/page.html", "x" * 256, "/dev/stdout", "a\0b"):
        if "\0" not in name:
            assert put(tmp_path / name if name[:1] != "/" else name).startswith("refused: ") or (
                name in ("directory/", ".", "..")
            ), name
    assert names(tmp_path) == ["directory", "fifo", "page.html"]


def test_the_umask_takes_from_the_mode(tmp_path: Path) -> None:
    assert put(tmp_path / "page.html", umask=0o077) == ""
    assert (tmp_path / "page.html").stat().st_mode & 0o777 == 0o600


def test_a_page_that_does_not_fit_leaves_nothing_behind(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("an older one")

    def small() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3, 3))
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    assert put(page, preexec_fn=small).startswith("refused: report: -o")
    assert page.read_text() == "an older one"
    assert names(tmp_path) == ["page.html"]

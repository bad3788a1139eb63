"""What doctor makes of a firewall, a resolver's file and a trap."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from netns_runtime.debug import doctor, places, vitals
from netns_runtime.debug.hostfirewall import concerns_of
from netns_runtime.debug.text import Page
from netns_runtime.debug.vitals import Finding, Looked
from netns_runtime.errors import StepError

if TYPE_CHECKING:
    from pathlib import Path


def chain(name: str, hook: str | None = None, policy: str = "accept") -> dict[str, Any]:
    found = {"family": "inet", "table": "fw", "name": name}
    return {"chain": found | ({"hook": hook, "policy": policy} if hook else {})}


def rule(name: str, *expr: dict[str, Any]) -> dict[str, Any]:
    return {"rule": {"family": "inet", "table": "fw", "chain": name, "expr": list(expr)}}


DROP: dict[str, Any] = {"drop": None}
ACCEPT: dict[str, Any] = {"accept": None}
STATE = {"match": {"left": {"ct": {"key": "state"}}, "right": ["established", "related"]}}
JUMP = {"jump": {"target": "below"}}


@pytest.mark.parametrize(
    "objects",
    [
        [],
        [chain("out", "output"), rule("out", ACCEPT)],
        [chain("in", "input", "drop"), rule("in", STATE, ACCEPT)],
        [chain("in", "input"), rule("in", DROP)],
        [chain("fwd", "forward", "drop"), rule("fwd", DROP)],
        [chain("alone"), rule("alone", DROP)],
    ],
    ids=["none", "accepts", "replies pass", "input refuses some", "forward", "not reached"],
)
def test_what_cannot_stop_the_proxy_is_no_concern(objects: list[dict[str, Any]]) -> None:
    assert concerns_of(objects) == []


@pytest.mark.parametrize(
    ("objects", "told"),
    [
        (
            [chain("out", "output"), rule("out", DROP), rule("out", {"reject": {}})],
            "inet fw out (output) has 2 rules that drop or rejects",
        ),
        (
            [chain("out", "output"), chain("below"), rule("out", JUMP), rule("below", DROP)],
            "inet fw out (output) has a rule that drops or rejects",
        ),
        (
            [chain("out", "output", "drop"), rule("out", ACCEPT)],
            "inet fw out (output) drops what none of its 1 rules accepts",
        ),
        (
            [chain("in", "input", "drop"), rule("in", ACCEPT)],
            "inet fw in (input) drops what none of its 1 rules accepts",
        ),
    ],
)
def test_what_may_stop_it_is_named(objects: list[dict[str, Any]], told: str) -> None:
    assert concerns_of(objects) == [told]


def test_chains_that_jump_in_a_circle_end() -> None:
    back = {"goto": {"target": "below"}}
    objects = [chain("out", "output"), chain("below"), rule("out", JUMP), rule("below", back)]
    assert concerns_of(objects) == []


def test_name_servers_are_the_first_three_without_their_zone() -> None:
    text = "search x\nnameserver 127.0.0.53\n nameserver fe80::1%eth0 \n#nameserver 9.9.9.9\n"
    text += "nameserver 192.0.2.1\nnameserver 192.0.2.2\nnameserver\n"
    assert places.nameservers_of(text) == [("127.0.0.53", 53), ("fe80::1", 53), ("192.0.2.1", 53)]


def test_a_query_is_one_question_of_its_name() -> None:
    assert places.query_of("localhost", 1)[12:] == b"\x09localhost\0\0\x01\0\x01"
    assert places.query_of("", 2)[12:] == b"\0\0\x02\0\x01"


@pytest.mark.parametrize("trap", ["link", "directory link", "pipe", "device"])
def test_nothing_inside_leads_out_or_holds_us_up(tmp_path: Path, trap: str) -> None:
    path = tmp_path / "file"
    if trap == "link":
        path.symlink_to("/etc/hostname")
    elif trap == "directory link":
        (tmp_path / "to").symlink_to("/etc")
        path = tmp_path / "to" / "hostname"
    elif trap == "pipe":
        os.mkfifo(path)
    else:
        path = tmp_path.__class__("/dev/null")
    with pytest.raises(OSError, match=r"."):
        places.read_inside(os.getpid(), str(path))


def test_a_file_inside_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 100_000)
    assert places.read_inside(os.getpid(), str(path.resolve())) == b"x" * 100_000


def test_what_is_no_certificate_is_left_out() -> None:
    pem = b"-----BEGIN CERTIFICATE-----\nAAEC\n-----END CERTIFICATE-----\n"
    assert places.certificates_of(b"junk" + pem + b"-----BEGIN CERTIFICATE-----\n&") == [b"\0\1\2"]
    assert places.out_of_date(b"\0\1\2", 0.0) == "cannot be read"


def test_a_process_that_has_ended_is_told_as_such() -> None:
    assert places.state_of(None) == "has ended"
    assert places.state_of(os.getpid()) == "runs"


@pytest.mark.parametrize(
    ("state", "verdict", "words"),
    [
        (0, "ok", "UTC, synchronised"),
        (5, "warn", "the kernel does not know it to be synchronised"),
        (-1, "unknown", "synchronised or not is unknown"),
    ],
)
def test_a_clock_that_is_not_kept_right_is_named(
    monkeypatch: pytest.MonkeyPatch, state: int, verdict: str, words: str
) -> None:
    """What adjtimex(2) answers: TIME_OK, TIME_ERROR, or an error of the call."""
    libc = SimpleNamespace(adjtimex=lambda _: state)
    monkeypatch.setattr("ctypes.CDLL", lambda *_, **__: libc)
    own = Looked(None, {"pid": os.getpid()}, None)  # type: ignore[arg-type]
    found = vitals.clock(own)
    assert (found.check, found.verdict) == ("clock", verdict)
    assert words in found.detail
    assert bool(found.remedy) is (verdict == "warn")


def test_a_check_that_breaks_is_unknown_and_one_that_fails_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(_: Looked) -> Finding:
        raise OSError(1, "no such thing")

    def failing(_: Looked) -> Finding:
        raise StepError("it is gone", remedy="start again")

    monkeypatch.setattr(doctor, "CHECKS", (broken, failing))
    findings = doctor.examined(Looked(None, None, None))  # type: ignore[arg-type]
    assert [(one.check, one.verdict) for one in findings] == [
        ("broken", "unknown"),
        ("failing", "fail"),
    ]
    page = doctor.page_of("s", findings, Page(width=80, colour=False), is_well=False)
    assert "fail    failing: it is gone; start again" in page
    assert page.endswith("s is not well")

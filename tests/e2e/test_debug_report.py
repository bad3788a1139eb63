"""`netns-debug report` of a sandbox in which everything happened, as a browser shows it."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support import chromium
from tests.support.clients import python, trust
from tests.support.lab import CHECKOUT
from tests.support.report_page import read
from tests.support.run import PYTHON, Running, netns_debug, netns_run

if TYPE_CHECKING:
    from tests.support.chromium import Seen
    from tests.support.lab import Lab
    from tests.support.run import Result

NAME = "debug-report"
VALUE = "sk-report-5b2e9c7d41"
REFUSED = 37
POLICY = """\
version: 1
network_policies:
  sockets:
    endpoints:
      - {host: ws.lab.test, port: 443, protocol: websocket, access: full}
      - {host: v4.lab.test, ports: [80, 9]}
      - {host: private.lab.test, port: 80}
      - {host: web.lab.test, port: 80}
      - host: api.lab.test
        port: 443
        protocol: rest
        rules:
          - allow: {method: GET, path: /**}
"""
SCRIPT = f"""
import json, os, socket, subprocess, sys
def curl(*words):
    quiet = ["curl", "-sS", "-o", "/dev/null", "--max-time", "10"]
    subprocess.run([*quiet, *words], stderr=subprocess.DEVNULL)
for _ in range({REFUSED}):
    with socket.socket() as s: s.connect_ex(("203.0.113.99", 443))
for name in ("metrics.unlisted.test", "telemetry.unlisted.test"):
    try: socket.getaddrinfo(name, 443)
    except OSError: pass
for _ in range(4): curl("http://web.lab.test/")
curl("http://v4.lab.test:9/")
curl("http://private.lab.test/")
curl("https://evil.unlisted.test/")
curl("https://api.lab.test/status/404")
curl("-X", "POST", "-d", "x=1", "https://api.lab.test/admin/users")
token = "Authorization: Bearer " + os.environ["OPENAI_API_KEY"]
curl("-H", token, "https://api.openai.com/v1/models")
curl("-H", token, "https://api.lab.test/echo")
to = "wss://ws.lab.test/fail/"
items = [("close/4004/because", "wait"), ("reset", "wait"), ("close/1000", "wait")]
told = json.dumps([{{"url": to + path, "then": then}} for path, then in items])
subprocess.run(sys.argv[1:3], input=told, text=True, stdout=subprocess.DEVNULL)
words = [sys.executable, sys.argv[3], "websocket", "ws.lab.test", "443"]
held = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
print(held.stdout.readline().strip(), flush=True)
sys.stdin.readline()
held.communicate("\\n\\n")
"""


@dataclass(frozen=True)
class Reports:
    """Two pages of the same sandbox: `live` made while it ran, `page` of its `audit`."""

    live: Path
    page: Path
    audit: Path
    data: dict[str, Any]
    result: Result


@pytest.fixture(scope="module")
def reports(lab_of_all: Lab, tmp_path_factory: pytest.TempPathFactory) -> Reports:
    place = tmp_path_factory.mktemp("report")
    policy, audit = place / "policy.yaml", place / "audit.jsonl"
    live, page = place / "live.html", place / "page.html"
    policy.write_text(POLICY)
    lab_of_all.accept("OPENAI_API_KEY", VALUE)
    with Running(
        *("--name", NAME, "--policy", str(policy), "--preset", "openai"),
        *("--secret", "OPENAI_API_KEY"),
        cmd=[PYTHON, "-c", SCRIPT, *python("ws_fail.py"),
             str(CHECKOUT / "tests/support/debug_client.py")],
        lab=lab_of_all,
        stdin=subprocess.PIPE,
        env={**trust(lab_of_all), "OPENAI_API_KEY": VALUE},
    ) as running:  # fmt: skip
        assert running.line() == "held\n", running.wait(given=b"").told()
        made = netns_debug("report", NAME, "-o", str(live))
        assert made.returncode == 0, made.stderr
        result = running.wait(given=b"\n")
    audit.write_text("".join(json.dumps(event) + "\n" for event in result.audit))
    done = netns_debug("report", str(audit), "-o", str(page), "--json")
    assert done.returncode == 0, done.stderr
    return Reports(live, page, audit, json.loads(done.stdout), result)


SAID = (
    *("203.0.113.99:443", "metrics.unlisted.test", "--allow metrics.unlisted.test:443"),
    *("evil.unlisted.test:443", "--allow evil.unlisted.test:443", "--allow 203.0.113.99:443"),
    *("allowed_ips: [10.1.2.3]", "POST /admin/users", "does not allow POST /admin/users"),
    *("nothing listens there", "upstream answered GET /status/404 with status 404"),
    *("close-4004", "a TCP reset from upstream's side", "OPENAI_API_KEY"),
    *("header authorization", "it is not bound to api.lab.test", "exact: hook 37, nft 0"),
)


@pytest.mark.parametrize("which", ["live", "page"])
def test_the_page_says_what_happened(reports: Reports, which: str) -> None:
    html = getattr(reports, which).read_text("utf-8")
    page = read(html)
    missing = [text for text in SAID if text not in page.text]
    assert not missing, page.text
    assert set(page.links) <= set(page.ids)
    assert page.elements["h1"] == 1
    assert "script" not in page.elements
    assert ("still open" in page.text) == (which == "live")


def test_no_secret_s_value_is_on_a_page(reports: Reports) -> None:
    for page in (reports.live, reports.page):
        assert VALUE not in page.read_text("utf-8")
    assert VALUE not in json.dumps(reports.data)


def test_the_numbers_are_the_kernel_s_and_the_audit_s(reports: Reports) -> None:
    (story,) = reports.data["stories"]
    totals = story["totals"]
    assert (totals["refused"], totals["counted_bpf"], totals["untold"]) == (REFUSED, REFUSED, 0)
    assert (totals["sockets"], totals["sockets_failed"]) == (4, 2)
    assert totals["names_refused"] == len(reports.result.events("dns.refused"))
    assert totals["requests"] == len(reports.result.events("http.request"))
    (secret,) = story["secrets"]
    assert (secret["name"], secret["substituted"], secret["withheld"]) == ("OPENAI_API_KEY", 1, 1)
    first = story["refusals"][0]
    assert (first["where"], first["count"], first["who"]) == ("203.0.113.99:443", 37, "python3")
    talks = {(talk["who"], talk["where"]): talk for talk in story["talks"]}
    assert talks["curl", "web.lab.test:80"]["passed"] == 4
    assert talks["python3", "203.0.113.99:443"]["refused"] == REFUSED


def test_a_refusal_has_the_words_of_why(reports: Reports) -> None:
    (story,) = reports.data["stories"]
    cards = {trouble["where"]: trouble for trouble in story["refusals"] + story["failures"]}
    asked = 0
    for where in ("203.0.113.99:443", "evil.unlisted.test:443", "private.lab.test:80",
                  "v4.lab.test:9", "metrics.unlisted.test"):  # fmt: skip
        why = netns_debug("why", where, "--from", str(reports.audit), "--json")
        told = json.loads(why.stdout)
        card = cards[where]
        assert card["cause"] == told["cause"], where
        assert card["changes"] == told["changes"], where
        assert card["advice"] == told["advice"], where
        asked += 1
    assert asked == 5


def test_a_websocket_has_the_words_of_ws(reports: Reports) -> None:
    (story,) = reports.data["stories"]
    told = json.loads(netns_debug("ws", "--from", str(reports.audit), "--json").stdout)
    lives = [life for life in told["websockets"] if life["is_websocket"]]
    mine = {life["kind"]: life for life in story["sockets"] if life["is_failed"]}
    assert sorted(mine) == sorted(life["kind"] for life in lives) == ["close-4004", "cut"]
    for life in lives:
        card = mine[life["kind"]]
        assert card["ended_by"] == life["ended_by"]
        assert list(card["evidence"]) == life["evidence"]
        assert (card["usually"], card["do"]) == (life["usually"], life["do"])


def test_the_same_audit_gives_the_same_page(reports: Reports) -> None:
    again = netns_debug("report", str(reports.audit), "-o", "-")
    assert again.stdout == reports.page.read_text("utf-8")


def test_an_audit_in_ocsf_gives_the_same_story(lab: Lab, tmp_path: Path) -> None:
    audit = tmp_path / "audit.jsonl"
    netns_run(
        *("--audit", str(audit), "--audit-format", "ocsf"),
        cmd=["curl", "-s", "--noproxy", "*", "http://203.0.113.9/"],
        lab=lab,
    )
    done = netns_debug("report", str(audit), "--json")
    (story,) = json.loads(done.stdout)["stories"]
    assert story["refusals"][0]["where"] == "203.0.113.9:80"
    assert story["totals"]["refused"] == 1


LIGHT_GROUND, DARK_GROUND = bytes.fromhex("fafaf8"), bytes.fromhex("15171a")


@pytest.fixture(scope="module")
def browser() -> str:
    found = chromium.program()
    if found is None and "ID=ubuntu" in Path("/etc/os-release").read_text().split():
        pytest.xfail("Ubuntu's Chromium is a snap, which sees neither the page nor the namespace")
    if found is None:
        pytest.skip("no Chromium: scripts/bootstrap test installs it")
    return found


def examined(found: Seen) -> None:
    assert found.console == ()
    assert found.asked == ()
    colours = found.picture.colours()
    assert len(colours) > 50, len(colours)
    assert max(colours.values()) < 0.97 * found.picture.width * found.picture.height


@pytest.mark.parametrize("which", ["live", "page"])
def test_a_browser_shows_it_without_a_complaint(reports: Reports, which: str, browser: str) -> None:
    found = chromium.seen(getattr(reports, which), height=1400)
    examined(found)
    text = read_dom(found.dom)
    assert [said for said in SAID if said not in text] == []
    colours = found.picture.colours()
    assert max(colours, key=lambda c: colours[c]) == LIGHT_GROUND
    assert bytes.fromhex("b3261e") in colours
    assert bytes.fromhex("8f5200") in colours


def test_it_is_dark_where_dark_is_preferred(reports: Reports, browser: str) -> None:
    found = chromium.seen(reports.page, height=900, is_dark=True)
    examined(found)
    colours = found.picture.colours()
    assert max(colours, key=lambda c: colours[c]) == DARK_GROUND


def test_a_phone_shows_it_without_scrolling_sideways(reports: Reports, browser: str) -> None:
    found = chromium.seen(reports.page, width=390, height=1400)
    examined(found)
    # Whatever stuck out would have made the picture's right edge something else than the ground.
    edges = [row[-found.picture.depth :][:3] for row in found.picture.rows]
    assert set(edges) == {LIGHT_GROUND}


def test_the_browser_would_have_complained(reports: Reports, browser: str, tmp_path: Path) -> None:
    attacked = tmp_path / "attacked.html"
    html = reports.page.read_text("utf-8")
    wrong = '<script>alert(1)</script><img src="http://203.0.113.1/x">'
    attacked.write_text(html.replace("</body>", f"{wrong}</body>"))
    found = chromium.seen(attacked, height=200)
    assert any("script violates" in line for line in found.console)
    assert any("203.0.113.1" in line for line in found.console)


def read_dom(dom: str) -> str:
    return read(dom[dom.index("<body") : dom.rindex("</html>")]).text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("gone", "-o", "/tmp/x.html"), "no sandbox called gone"),
        (("./gone", "-o", "/tmp/x.html"), "No such file"),
        (("gone",), "report needs -o FILE"),
        (("a", "b", "-o", "x"), "one SANDBOX or AUDIT"),
        (("--bogus", "-o", "x"), "unknown option"),
        (("/etc/passwd", "-o", "/no/such/place/x.html"), "No such file"),
        (("/etc/passwd", "-o", "-"), "holds no event"),
    ],
)
def test_a_mistake_is_one_line_with_a_remedy(words: tuple[str, ...], said: str) -> None:
    done = netns_debug("report", *words)
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr.count("\n") == 1
    assert said in done.stderr

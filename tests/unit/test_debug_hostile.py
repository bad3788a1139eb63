"""What somebody inside, or upstream, does to mislead netns-debug or to wear it out."""

from __future__ import annotations

import json
import socket
import time
from typing import Any

import pytest

from netns_runtime.address import HostPort
from netns_runtime.debug.ancestry import Ancestry, time_of
from netns_runtime.debug.evidence import Evidence
from netns_runtime.debug.learned import Learned, nameable, seen_of
from netns_runtime.debug.learnpaths import globs_for
from netns_runtime.debug.learnpolicy import comments_on, policy_for, text_of
from netns_runtime.debug.steps import step_of
from netns_runtime.debug.text import who_of
from netns_runtime.debug.wslives import lives_of
from netns_runtime.debug.wswords import cut_of, line_of
from netns_runtime.feed import STALE, Feed
from netns_runtime.policy import load_policy
from netns_runtime.policy.requests import Asked, decide_request
from netns_runtime.proxy.control import Control
from netns_runtime.proxy.tallies import LABEL_SETS, Tallies
from netns_runtime.proxyprocess import ProxyProcess
from netns_runtime.recent import BATCH_BYTES, Recent, batches_of

# Four bytes in the file's name, twelve in JSON.
LONG = "/tmp/" + "\U0001f600" * 1000


def flow(*requests: dict[str, Any], number: int = 1, **fields: Any) -> list[dict[str, Any]]:
    base = {"sandbox": "box", "flow": number, "host": "web.test", "port": 443, **fields}
    asked = [{"event": "http.request", "action": "allow", **base, **each} for each in requests]
    decided = {"event": "flow.decided", "action": "allow", **base}
    return [decided, *asked, {"event": "flow.closed", **base, "bytes_out": 9, "bytes_in": 9}]


def learned(*flows: list[dict[str, Any]]) -> Learned:
    return seen_of(Evidence("audit", tuple(event for one in flows for event in one)))


def policy_text(found: Learned, *, binaries: bool = False) -> str:
    text = text_of(policy_for(found, binaries=binaries), (), comments_on(found))
    load_policy(text.encode("ascii"), "learned.yaml")
    return text


def get(path: str, method: str = "GET", **more: Any) -> dict[str, Any]:
    return {"method": method, "path": path, "status": 200, **more}


@pytest.mark.parametrize("path", ["/**", "/%2A%2A", "/a/*", "/a/[b]/c"])
def test_a_path_that_looks_like_a_glob_is_learned_as_itself(path: str) -> None:
    text = policy_text(learned(flow(get(path))))
    assert "*" not in text
    assert "[" not in text


def test_one_path_that_no_rule_can_say_widens_its_own_method_alone_and_says_so() -> None:
    text = policy_text(learned(flow(get("/only", "POST"), get("/ok"), get("//odd"))))
    assert "{method: POST, path: /only}" in text
    assert '{method: GET, path: "/**"}' in text
    assert "# no narrower rule allows all that it asked for: any path is allowed with GET" in text


def test_one_executable_does_not_widen_what_another_may_do() -> None:
    found = learned(
        flow(get("/only"), exe="/usr/bin/good"), flow(get("//odd"), number=2, exe="/tmp/bad")
    )
    good = policy_text(found, binaries=True).partition("  good:")[2].partition("binaries:")[0]
    assert "{method: GET, path: /only}" in good
    assert "/**" not in good


@pytest.mark.parametrize(
    "request_",
    [get("/ws", "WEBSOCKET_TEXT"), get("/a", "G'ET: {"), get("/a\x00b"), get("*")],
    ids=["a rule's method", "no token", "a path that is refused", "an asterisk"],
)
def test_a_request_that_no_rule_can_say_is_a_comment_and_opens_nothing(
    request_: dict[str, Any],
) -> None:
    found = learned(flow(request_))
    text = policy_text(found)
    assert "network_policies: {}" in text
    assert "# Refused while learning" in text


def test_a_flow_whose_only_request_was_refused_does_not_open_its_host() -> None:
    refused = get("/a", action="refuse", status=400)
    assert "network_policies: {}" in policy_text(learned(flow(refused)))


@pytest.mark.parametrize(
    "exe", ["/tmp/**", "/tmp/a[b]", "/tmp/?", "/tmp/\udcff", LONG, "/tmp/a\nb", "x", "/a/../b"]
)
def test_an_executable_whose_name_is_a_glob_or_no_text_opens_nothing(exe: str) -> None:
    found = nameable(
        learned(flow(get("/"), exe=exe), flow(get("/"), number=2, exe="/usr/bin/curl"))
    )
    text = policy_text(found, binaries=True)
    assert "- {path: /usr/bin/curl}" in text
    assert text.count("path: /usr") == text.count("- {path:")
    assert "no policy can name its executable alone" in text


def test_the_names_of_rules_do_not_grow_with_every_executable_of_one_name() -> None:
    flows = [flow(get("/"), number=n, host=f"h{n}.test", exe=f"/tmp/{n}/x") for n in range(30)]
    groups = policy_for(learned(*flows), binaries=True)
    assert [group.name for group in groups] == ["x", *(f"x-{n}" for n in range(2, 31))]


def test_paths_of_thousands_of_segments_cost_no_more_than_others() -> None:
    paths = [f"/{number}x" + "/a" * 3900 for number in range(40)]
    began = time.process_time()
    globs_for(paths)
    assert time.process_time() - began < 2


def test_websockets_in_one_flow_are_told_apart_in_linear_time() -> None:
    upgrade = get("/ws", protocol="websocket", status=403)
    events = tuple(flow(*[upgrade] * 10_000))
    began = time.process_time()
    assert len(lives_of(Evidence("audit", events))) == 10_000
    assert time.process_time() - began < 1


def test_a_host_s_name_does_not_make_an_end_a_reset() -> None:
    detail = "reset.test (192.0.2.1) port 443 ended the connection in the middle of the TLS"
    assert "a TCP reset" not in cut_of({"said_by": "upstream", "detail": detail})
    assert "a TCP reset" in cut_of({"detail": "upstream is gone: Connection reset by peer"})


@pytest.mark.parametrize(
    ("comm", "told"),
    [
        ("curl", "curl (pid 7)"),
        ("kworker/0:1", "kworker/0:1 (pid 7)"),
        ("x (pid 1)", '"x (pid 1)" (pid 7)'),
        ('" -> a:1', '"\\" -> a:1" (pid 7)'),
        ("\u202eevil", '"\\u202eevil" (pid 7)'),
    ],
)
def test_a_process_s_name_cannot_pass_for_a_pid_or_a_place(comm: str, told: str) -> None:
    assert who_of({"comm": comm, "pid": 7}) == told


@pytest.mark.parametrize("method", ["*", "WEBSOCKET_TEXT", "WEBSOCKET_BINARY", "websocket_text"])
def test_a_method_that_means_more_in_a_rule_is_never_recommended(method: str) -> None:
    for path in ("/x", "/other"):
        policy = load_policy(
            b"network_policies: {a: {endpoints: [{host: a.test, port: 80, protocol: rest,"
            b" path: /x, rules: [{allow: {method: GET, path: /x}}]}]}}",
            "policy.yaml",
        )
        judged = decide_request(policy, HostPort("a.test", 80), None, Asked(method, path))
        assert not judged.is_allowed
        assert judged.remedy.startswith("none: ")


def test_a_method_that_is_a_word_of_the_refusal_does_not_move_the_step() -> None:
    event = {"event": "http.request", "action": "refuse", "reason": "http_request_denied"}
    event |= {"method": "rule", "path": "/x", "detail": "no rule allows evil.test:80"}
    assert step_of(event) == "decision"
    event |= {"method": "GET", "path": "/" + "x" * 200}
    event |= {"detail": f"a (p:1) does not allow GET /{'x' * 116}...: GET goes to other paths"}
    assert step_of(event) == "traffic"


def test_a_close_reason_cannot_pass_for_another_field() -> None:
    event = {
        "event": "ws.closed",
        "code": 1008,
        "said_by": "upstream",
        "detail": "x, said_by policy",
    }
    assert line_of(event, "code", "said_by", "detail") == (
        'ws.closed: code 1008, said_by upstream, detail "x, said_by policy"'
    )


def test_however_long_its_fields_are_an_event_fits_one_message() -> None:
    names = ("exe", "path", "origin", "offered", "chosen", "server", "detail", "remedy")
    hostile = {"event": "http.request", "flow": 7, **dict.fromkeys(names, LONG)}
    recent = Recent()
    recent.take(hostile)
    [[told], _, _] = recent.since(0)
    assert len(json.dumps(told)) <= BATCH_BYTES
    assert told["flow"] == 7
    assert told["exe"].startswith("/tmp/\U0001f600")


def test_flows_are_told_in_messages_that_the_supervisor_takes() -> None:
    flows = [{"flow": number, "exe": LONG} for number in range(100)]
    assert [row["flow"] for batch in batches_of(flows) for row in batch] == list(range(100))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        telling = Control(theirs)._tell_flows(3, flows[:6])
        with pytest.raises(StopIteration):
            telling.send(None)
        process = ProxyProcess.__new__(ProxyProcess)
        process.control = ours
        told: list[Any] = []
        while not told or told[-1]["more"]:
            told.append(process.receive())
    assert [row["flow"] for message in told for row in message["flows"]] == list(range(6))


def test_a_question_that_the_proxy_could_not_answer_is_asked_again() -> None:
    class Proxy:
        asked = 0

        def send(self, message: dict[str, Any]) -> bool:
            self.asked += message["for"] == "recent"
            return True

    now = [100.0]
    proxy: Any = Proxy()
    feed = Feed(proxy, lambda: now[0])
    answers: list[Any] = []
    feed.recent(lambda events, _: answers.append(events))
    feed.recent(lambda events, _: answers.append(events))
    assert proxy.asked == 1
    now[0] += STALE + 1
    feed.recent(lambda events, _: answers.append(events))
    assert proxy.asked == 2
    feed.on_proxy({"kind": "events", "for": "recent", "events": [], "next": 0})
    assert answers == [[], [], []]


def test_a_server_with_a_hundred_statuses_does_not_hide_who_refused() -> None:
    tallies = Tallies()
    for status in range(LABEL_SETS):
        asked = {"event": "http.request", "method": "GET", "said_by": "upstream"}
        tallies.take({**asked, "status": 900 - status})
    tallies.take({"event": "http.request", "method": "GET", "status": 403, "said_by": "policy"})
    found = [labels for name, labels, _ in tallies.told((), 0)["counts"] if name == "requests"]
    assert found[-1] == ["other", "other", "policy"]


def test_a_pid_that_was_used_again_gives_no_stranger_for_a_parent() -> None:
    event = {"pid": 9, "ppid": 8, "time": "2026-01-01T12:00:00.000000Z"}
    when = time_of(event)
    assert when is not None
    processes = {9: ("sshd", 3), 3: ("systemd", 1), 8: ("sh", 5)}
    started = {9: when + 60, 3: when - 1000, 8: when - 5}
    ancestry = Ancestry(5, processes.get, lambda: 0.0, started.get)
    assert ancestry.of(event) == [{"pid": 8, "comm": "sh"}]
    started[8] = when + 60
    ancestry = Ancestry(5, processes.get, lambda: 0.0, started.get)
    assert ancestry.of(event) == []

"""Explains how a WebSocket ended: who ended it, by what evidence, the usual cause, what to do.

`explain` is a decision list over a `Life`; the first line that fits decides, from what is certain
to what is likely. Nothing is said that no event shows: where events are missing, `who` is "unknown"
and `do` says what would show it. Pure.

    1. never an upgrade   refused name, connect or flow; upstream's name, port or TLS; a cut tunnel
    2. the handshake      refused by policy or proxy; cut off; a status; a wrong 101
    3. open, not over     still open, or its end is not in the evidence
    4. frames not seen    relayed: whose cut it was, but no code
    5. over               refused or broken, as the proxy saw it; rate; idle; cut; a close code
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from netns_runtime.debug.text import age_of, shown
from netns_runtime.debug.wsbefore import BEFORE, SEEN, explain_before
from netns_runtime.debug.wstables import (
    CODES,
    FAMILIES,
    STATUSES,
    Cause,
    cause_of,
    hop_of,
)
from netns_runtime.debug.wswords import (
    Explanation,
    client_of,
    cut_of,
    line_of,
    party_of,
    upstream_of,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from netns_runtime.debug.wslives import Life

LEAST_IDLE: Final = 1.0
"""Seconds of silence that can be somebody's idle limit, where they come again and again."""
LONE_IDLE: Final = 20.0
"""And where it happened once. Of the known limits (wstables) 30 s is the shortest."""

_RATE: Final = re.compile(r"\brate|too many|throttl|slow down|quota", re.IGNORECASE)
_IDLE: Final = re.compile(r"\bidle|inactiv|time[d ]?-?out|keepalive|ping", re.IGNORECASE)


def explain(life: Life, others: Sequence[Life] = ()) -> Explanation:
    """`others` are lives of the same host, which can tell chance from habit."""
    if not life.is_websocket:
        return explain_before(life)
    if life.stage == "handshake":
        return _handshake(life, others)
    fault = (life.request or {}).get("reason")
    if fault == "http_upgrade_failed":
        return _bad_switch(life)
    if not life.is_over:
        return Explanation(
            "open",
            "nobody: no end of it is in the evidence",
            _of_open(life),
            "it is still open, or the audit ends before it did",
            "netns-debug flows shows what is open now",
        )
    if life.is_relayed:
        return _relayed(life)
    return _over(life, others)


def _of_request(life: Life) -> list[str]:
    request = life.request
    if request is None:
        return ["its handshake is not in the evidence"]
    said = [line_of(request, "method", "path", "status", "said_by", "reason", "detail", "rule")]
    sent = [
        f"{name} {shown(request[key], 200)}"
        for key, name in (("origin", "Origin"), ("offered", "subprotocols"))
        if request.get(key) is not None
    ]
    if sent:
        said.append(f"the client sent: {', '.join(sent)}")
    if request.get("server"):
        said.append(f"the answer names its server as {shown(request['server'], 100)}")
    return said


def _of_secrets(life: Life) -> list[str]:
    said = []
    if life.secrets:
        said.append(f"values were put in for: {', '.join(map(shown, life.secrets))}")
    if life.withheld:
        names = ", ".join(map(shown, life.withheld))
        said.append(f"not put in, as not bound to this host: {names}")
    return said


def _handshake(life: Life, others: Sequence[Life]) -> Explanation:
    request = life.last
    status, said_by = request.get("status"), request.get("said_by")
    evidence = _of_request(life) + _of_secrets(life)
    remedy = request.get("remedy")
    if request.get("action") == "refuse" or said_by == "policy":
        return Explanation(
            "handshake-refused-by-policy",
            "netns-runtime, by policy",
            tuple(evidence),
            "a rule for this host's requests or WebSockets does not allow this upgrade",
            str(remedy or "see netns-debug why HOST --url URL"),
        )
    if said_by == "proxy":
        return Explanation(
            "handshake-refused-by-proxy",
            "netns-runtime's proxy",
            tuple(evidence),
            "the handshake could not be read or carried",
            str(remedy or "correct the request as the detail says"),
        )
    if request.get("reason") is not None:
        # No answer: the 502 or 504 is ours, and tells how upstream failed.
        reason = str(request["reason"])
        key = BEFORE[reason][0] if reason in BEFORE else "handshake-cut"
        usually = "the server, or a hop before it, broke off in the middle of the handshake"
        do = "see the server's log; policy allowed it, so no rule will help"
        if reason in BEFORE:
            _, _, usually, do = BEFORE[reason]
        return Explanation(key, upstream_of(life), tuple(evidence), usually, str(remedy or do))
    if not isinstance(status, int):
        return _unknown(life, evidence)
    cause = STATUSES.get(status) or FAMILIES.get(status // 100, STATUSES[400])
    key = f"handshake-{status}"
    usually, do = cause.usually, cause.do
    if status in (401, 403) and life.withheld:
        usually = "a placeholder went where a token belongs: the secret is not bound to this host"
        do = "bind the secret to this host in the policy's `secrets`"
    elif status == 403:
        key, usually, do = _forbidden(life, others, cause)
    return Explanation(
        key, upstream_of(life), (f"status {status}: {cause.name}", *evidence), usually, do
    )


def _forbidden(life: Life, others: Sequence[Life], cause: Cause) -> tuple[str, str, str]:
    """Whether the Origin is the likely reason for a 403."""
    origin = (life.request or {}).get("origin")
    text = f"{life.get('detail') or ''}".lower()
    taken = sorted(
        {
            str((other.request or {}).get("origin") or "none")
            for other in others
            if other.request is not None
            and other.request.get("status") == 101
            and other.request.get("path") == (life.request or {}).get("path")
        }
        - {str(origin or "none")}
    )
    if "origin" in text or taken:
        by = f"it has taken Origin {', '.join(map(shown, taken))}" if taken else "it says so itself"
        return (
            "handshake-403-origin",
            f"the server does not take the Origin {shown(origin or 'none')}: {by}",
            "send an Origin that the server lists, or add this one there",
        )
    if origin is not None:
        usually = f"{cause.usually}; here the client sent one, {shown(origin, 200)}"
        return "handshake-403", usually, cause.do
    return "handshake-403", cause.usually, f"{cause.do} (this one sent none)"


_SWITCHES: Final = (
    (
        "Sec-WebSocket-Accept",
        "bad-accept",
        "what answers is no WebSocket server, or a cache or hop answers in its place",
        "ask the server directly, without the hops before it; nothing in the policy will help",
    ),
    (
        "subprotocol",
        "bad-subprotocol",
        "the server speaks another subprotocol, or chooses one without looking at the offer",
        "let the client offer what the server chose, or correct the server's choice",
    ),
    (
        "extension",
        "bad-extension",
        "the server turns an extension on that it was not offered",
        "turn the extension off at the server",
    ),
)


def _bad_switch(life: Life) -> Explanation:
    detail = str((life.request or {}).get("detail") or "")
    key, usually, do = next(
        (rest for word, *rest in _SWITCHES if word in detail),
        ["bad-handshake", "the server's 101 is not RFC 6455's", "update the server's library"],
    )
    evidence = [f"the 101 is at fault: {shown(detail)}", *_of_request(life)]
    if life.closed is not None:
        evidence.append(line_of(life.closed, "code", "said_by", "detail"))
    return Explanation(
        key, f"{client_of(life)}, as RFC 6455 wants it to; upstream is at fault", tuple(evidence),
        usually, do,
    )  # fmt: skip


def _of_open(life: Life) -> tuple[str, ...]:
    return tuple(_of_request(life))


def _relayed(life: Life) -> Explanation:
    last = life.last
    evidence = (line_of(last, "reason", "said_by", "detail", "bytes_in", "bytes_out"),)
    if last.get("reason") == "connection_terminated":
        return Explanation(
            "relayed-cut", party_of(life), (*evidence, cut_of(last)), CODES[1006].usually, SEEN
        )
    return Explanation(
        "relayed",
        "unknown: its frames passed without being looked at",
        (*evidence, "both sides ended their connection in order"),
        "an ordinary close, whose code nobody saw",
        SEEN,
    )


def _over(life: Life, others: Sequence[Life]) -> Explanation:
    last = life.last
    code, said_by = last.get("code"), life.said_by
    evidence = [
        line_of(last, "code", "said_by", "detail", "messages_in", "messages_out"),
        *_of_secrets(life),
    ]
    if said_by == "policy" and last.get("action") == "refuse":
        return Explanation(
            "message-refused",
            "netns-runtime, by policy",
            (*evidence, line_of(last, "rule", "reason")),
            "a message that no rule for this WebSocket allows",
            str(last.get("remedy") or "add a rule for such messages"),
        )
    if not isinstance(code, int):
        return _unknown(life, evidence)
    cause = _cause_of(life, code)
    if said_by == "proxy":
        return _by_proxy(life, code, cause, evidence)
    text = str(last.get("detail") or "")
    if code != 1006 and (_RATE.search(text) or cause.name == "rate limited"):
        return Explanation(
            "rate-limited",
            party_of(life),
            (f"code {code}: {cause.name}", *evidence),
            "more messages or connections than the service takes from one client",
            "send more slowly, wait before reconnecting, and let the pauses grow",
        )
    idle = _idle(life, others, code, text)
    if idle is not None:
        return Explanation("idle-timeout", party_of(life), (*evidence, *idle[0]), *idle[1:])
    if code == 1006:
        offered, chosen = life.get("offered"), life.get("chosen")
        silent = not last.get("messages_in") and not last.get("messages_out")
        if said_by == "sandbox" and offered and not chosen and silent:
            evidence.append("upstream chose no subprotocol")
            return Explanation(
                "no-subprotocol",
                party_of(life),
                (*evidence, cut_of(last)),
                "a client that offered subprotocols and was given none; Node's ws ends there",
                f"let the server choose one of {shown(offered)}, or offer none",
            )
        return Explanation(
            "cut",
            party_of(life),
            (*evidence, cut_of(last), _quiet(life)),
            cause.usually,
            cause.do,
        )
    return Explanation(
        f"close-{code}",
        party_of(life),
        (f"code {code}: {cause.name}", *evidence),
        _blamed(life, cause),
        cause.do,
    )


def _blamed(life: Life, cause: Cause) -> str:
    """Of codes about what was sent: whose messages those were."""
    is_about_the_other = life.last.get("code") in (1002, 1003, 1007, 1009)
    if is_about_the_other and life.said_by in ("sandbox", "upstream"):
        sender = "upstream" if life.said_by == "sandbox" else "the client"
        return f"{cause.usually}; the side it complains about is {sender}"
    return cause.usually


def _cause_of(life: Life, code: int) -> Cause:
    return cause_of(code, str(life.get("host") or ""), life.get("chosen"))


def _by_proxy(life: Life, code: int, cause: Cause, evidence: list[str]) -> Explanation:
    detail = str(life.last.get("detail") or "")
    blamed = "the client" if detail.startswith("the sandbox") else "upstream"
    if "broke the protocol" in detail:
        who = f"netns-runtime's proxy, because {blamed} broke the protocol"
        evidence = [f"code {code}: {cause.name}", *evidence]
        return Explanation(f"broken-{code}", who, tuple(evidence), cause.usually, cause.do)
    do = str(life.last.get("remedy") or cause.do)
    who = "netns-runtime's proxy"
    return Explanation(f"proxy-{code}", who, tuple(evidence), detail or cause.usually, do)


def _idle(
    life: Life, others: Sequence[Life], code: int, text: str
) -> tuple[list[str], str, str] | None:
    """Evidence, cause and remedy where silence is what ended it."""
    idle = life.idle
    says_so = code != 1006 and _IDLE.search(text) is not None
    if idle is None or (idle < LEAST_IDLE and not says_so):
        return None
    alike = sum(
        other is not life
        and other.idle is not None
        and other.said_by == life.said_by
        and other.last.get("code") == code
        and abs(other.idle - idle) <= 0.05 * idle
        for other in others
    )
    hop = hop_of(idle)
    if not (says_so or alike or (code == 1006 and (idle >= LONE_IDLE or hop))):
        return None
    evidence = [f"nobody had said anything for {_precise(idle)}"]
    if alike:
        evidence.append(f"{alike} other(s) of this host ended after the same silence")
    if says_so:
        evidence.append("the reason that it gave says so")
    if hop:
        evidence.append(hop)
    server = life.get("server")
    side = "the client's own limit"
    if life.said_by != "sandbox":
        side = "the server's or that of a balancer before it"
        side += f" (it calls itself {shown(server, 100)})" if server else ""
    certain = bool(alike or says_so or hop)
    usually = f"an idle limit: {side}"
    if not certain:
        usually += "; a crash after a silence looks the same, a second such end would tell"
    every = max(1, int(idle / 2))
    return evidence, usually, f"send a ping every {every} s or less; the proxy has no idle limit"


def _quiet(life: Life) -> str:
    idle = life.idle
    if idle is None:
        return "how long it had been quiet is unknown"
    return f"it had been quiet for {_precise(idle)}"


def _precise(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 600 else age_of(seconds)


def _unknown(life: Life, evidence: list[str]) -> Explanation:
    return Explanation(
        "unknown",
        "unknown",
        tuple(evidence),
        "the event has no status or code that this version knows",
        "read the audit with the version that wrote it",
    )

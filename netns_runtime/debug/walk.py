"""Walks the way of one connection over the policy and the evidence, and says where it stops.

Each step is `ok`, `stop`, `unknown` or `unreached`. What was observed wins over what the policy
would say, unless the policy in force says otherwise by now; where neither speaks, a step is unknown
and says what would show it. `walk` is pure: facts in, an Explanation out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from netns_runtime.debug.foresee import PROXY, Step, changes_of, predicted, still_stops
from netns_runtime.debug.steps import ORDER, blame_of

if TYPE_CHECKING:
    from netns_runtime.debug.attempts import Attempt
    from netns_runtime.debug.foresee import Facts, Question

JUDGED: Final = ("dns", "decision", "traffic")
"""The steps that report mode only notes."""
_REASONS: Final = {
    "dns": "name_not_allowed",
    "hook": "direct_tcp",
    "decision": "http_request_denied",
    "screening": "destination_ip_prohibited",
    "traffic": "http_request_denied",
}


@dataclass(frozen=True, slots=True)
class Explanation:
    """`stops_at` None: nothing on record stops it. `said_by` as in `blame_of`, `allowed` where it
    passes. `changes` are alternatives, the smallest first, each of which would allow it; `advice`
    is what else helps. `is_observed` says whether an attempt shows it, or only the policy."""

    steps: tuple[Step, ...]
    stops_at: str | None
    said_by: str
    cause: str
    verdict: str
    reason: str | None = None
    changes: tuple[str, ...] = ()
    advice: str = ""
    is_observed: bool = False
    notes: tuple[str, ...] = ()


def walk(question: Question, facts: Facts) -> Explanation:
    """Explain one connection."""
    foretold = {step.step: step for step in predicted(question, facts)}
    attempt = facts.attempts[-1] if facts.attempts else None
    notes: list[str] = []
    if attempt is not None and attempt.step and not still_stops(attempt, question, facts):
        notes.append(
            f"the last attempt was refused ({attempt.get('reason')}), and the policy given here "
            "would let it pass: it has changed since, or is another"
        )
        attempt = None
    stop = attempt.step if attempt is not None else None
    foreseen = _foreseen_stop(foretold, attempt)
    if foreseen in JUDGED and (facts.report or _is_noted(attempt)):
        notes.append(
            f"--report lets it pass and only notes it; without: {foretold[foreseen].detail}"
        )
        foretold[foreseen] = Step(foreseen, "ok", "would be refused; --report lets it pass")
        foreseen = None
    is_observed = stop is not None
    if foreseen is not None and (stop is None or ORDER.index(foreseen) < ORDER.index(stop)):
        # A request that was asked about, or a policy that is stricter than the one of the attempt.
        is_observed, stop = False, foreseen
    steps = tuple(_merged(name, foretold[name], attempt, stop, is_observed) for name in ORDER)
    if stop is None:
        return _passing(steps, attempt, facts, notes)
    if is_observed and attempt is not None:
        return _observed(steps, stop, attempt, question, facts, notes)
    return _foreseen(steps, stop, question, facts, notes)


def _foreseen_stop(foretold: dict[str, Step], attempt: Attempt | None) -> str | None:
    """The first step that the policy stops; a client of the proxy's does not take the first."""
    is_explicit = attempt is not None and attempt.get("entry") == "explicit"
    way = ORDER[ORDER.index("decision") :] if is_explicit else ORDER
    if attempt is not None and attempt.step == "gateway":
        # What has no probe, or gets past it, is refused and counted one step later.
        foretold["hook"] = Step("hook", "ok", "not refused here: nft counted it")
    return next((name for name in way if foretold[name].state == "stop"), None)


def _is_noted(attempt: Attempt | None) -> bool:
    if attempt is None:
        return False
    return any(str(event.get("detail", "")).startswith("would be") for event in attempt.seen)


def _merged(
    name: str, predicted: Step, attempt: Attempt | None, stop: str | None, is_observed: bool
) -> Step:
    if stop is not None and ORDER.index(name) > ORDER.index(stop):
        return Step(name, "unreached", "not reached")
    if name == stop:
        if is_observed and attempt is not None:
            return Step(name, "stop", _words_of(attempt), attempt.get("rule") or predicted.rule)
        return predicted
    if attempt is None:
        return predicted
    seen = _seen(name, attempt)
    if seen is not None:
        return Step(name, "ok", seen, predicted.rule if name == "decision" else None)
    return predicted


def _words_of(attempt: Attempt) -> str:
    event = attempt.event
    if event["event"] == "http.request" and event.get("said_by") == "upstream":
        what = f"{event.get('method', 'the request')} {event.get('path', '')}".strip()
        if "detail" not in event:
            return f"upstream answered {what} with status {event.get('status')}"
    if event["event"] == "connect.refused":
        where = f"{attempt.get('address')}:{attempt.get('port')}"
        what = f"a direct {attempt.get('protocol') or 'IP'} connect to {where} was refused"
        if event.get("host"):
            what += f" ({where} stands for {event['host']})"
        return what
    if event["event"] == "ws.closed":
        said = event.get("detail") or "no reason given"
        return (
            f"the WebSocket was closed with {event.get('code')} by {event.get('said_by')}: {said}"
        )
    if attempt.step == "dial" and attempt.outcome == "failed" and "detail" not in event:
        seconds = float(event.get("duration_ms") or 0) / 1000
        return f"the client gave up after {seconds:.1f} s; upstream had not answered by then"
    return str(event.get("detail") or event.get("reason") or "no word about why")


def _seen(name: str, attempt: Attempt) -> str | None:
    """What the attempt shows of a step that it passed."""
    entry, address = attempt.get("entry"), attempt.get("address")
    kinds = {event["event"] for event in attempt.seen}
    if entry == "explicit" and name in ("dns", "hook", "gateway"):
        return {
            "dns": "not asked: the client gave the name to the proxy",
            "hook": f"the client connected to the proxy, {PROXY}",
            "gateway": f"{PROXY} is accepted",
        }[name]
    if entry == "redirected" and name in ("dns", "hook", "gateway"):
        return {
            "dns": "answered with a virtual address, or an address was given",
            "hook": "the address is one that is carried",
            "gateway": "handed to the proxy (TPROXY)",
        }[name]
    if entry == "direct":
        return "not refused here" if name in ("dns", "hook") else None
    if "flow.decided" not in kinds:
        return None
    is_dialled = attempt.step in ("tls", "traffic") or attempt.step is None
    if is_pending(attempt) and name in ("dial", "tls", "traffic"):
        return None
    has_http = bool(kinds & {"http.request", "ws.opened", "ws.closed"})
    if name == "decision":
        return f"allowed by {attempt.seen[0].get('rule') or attempt.get('rule') or 'report mode'}"
    if name == "resolve" and (address or attempt.step == "screening"):
        return f"is at {address}" if address else "resolved"
    if name == "screening" and address:
        return f"{address} may be dialled"
    if name == "dial" and is_dialled and address:
        return f"connected to {address}:{attempt.get('port')}"
    if name == "tls" and (attempt.step == "traffic" or attempt.step is None) and has_http:
        is_secure = attempt.get("protocol") in ("https", "h2") or attempt.get("port") == 443
        return "terminated, both handshakes succeeded" if is_secure else "none: plain HTTP"
    if name == "traffic" and has_http:
        status = attempt.get("status")
        return f"upstream answered with {status}" if status else "went on as it should"
    if name == "traffic" and attempt.outcome == "passed":
        moved = attempt.get("bytes_out") or 0, attempt.get("bytes_in") or 0
        return f"a tunnel: {moved[0]} bytes out, {moved[1]} in; what they said is not looked into"
    return None


def _observed(
    steps: tuple[Step, ...],
    stop: str,
    attempt: Attempt,
    question: Question,
    facts: Facts,
    notes: list[str],
) -> Explanation:
    event = attempt.event
    said_by, verdict, advice = blame_of(event)
    remedy = str(attempt.event.get("remedy") or "")
    changes: tuple[str, ...] = ()
    if said_by in ("policy", "sandbox"):
        changes = changes_of(question, facts, stop, remedy)
        if not changes:
            advice = remedy or advice
    else:
        advice = remedy or advice
    return Explanation(
        steps, stop, said_by, _words_of(attempt), verdict, attempt.get("reason"),
        changes, advice, True, tuple(notes),
    )  # fmt: skip


def _foreseen(
    steps: tuple[Step, ...], stop: str, question: Question, facts: Facts, notes: list[str]
) -> Explanation:
    changes = changes_of(question, facts, stop, "")
    advice = "" if changes or stop != "screening" else "none: this address is never dialled"
    said_by = "sandbox" if stop == "hook" else "policy"
    return Explanation(
        steps,
        stop,
        said_by,
        steps[ORDER.index(stop)].detail,
        blame_of({"event": "", "action": "refuse", "said_by": said_by})[1],
        _REASONS[stop],
        changes,
        advice,
        False,
        tuple(notes),
    )


def is_pending(attempt: Attempt) -> bool:
    """Whether nothing is on record since it was decided: it may be dialling, or a quiet tunnel."""
    return attempt.outcome == "open" and {e["event"] for e in attempt.seen} == {"flow.decided"}


def _pending(
    steps: tuple[Step, ...], attempt: Attempt, facts: Facts, notes: list[str]
) -> Explanation:
    age = ""
    if facts.now and attempt.time:
        from datetime import datetime

        since = datetime.fromisoformat(facts.now) - datetime.fromisoformat(attempt.time)
        age = f" for {since.total_seconds():.1f} s"
    where = f"{attempt.get('address') or attempt.get('host')}:{attempt.get('port')}"
    cause = f"the last attempt, to {where}, is under way{age}: no word from upstream is on record"
    advice = (
        "netns-debug flows shows whether it moves bytes; a server that does not answer is told "
        "after 30 s"
    )
    return Explanation(
        steps, None, "unknown", cause, "not known yet", None, (), advice, True, tuple(notes)
    )


def _passing(
    steps: tuple[Step, ...], attempt: Attempt | None, facts: Facts, notes: list[str]
) -> Explanation:
    is_observed = attempt is not None and attempt.outcome in ("passed", "open")
    if attempt is not None and is_pending(attempt):
        return _pending(steps, attempt, facts, notes)
    unknown = [step for step in steps if step.state == "unknown"]
    if is_observed and attempt is not None:
        is_open = attempt.outcome == "open"
        cause = "the last attempt is under way" if is_open else "the last attempt passed"
        verdict = "nothing stops it"
    elif unknown and unknown[0].step in ORDER[:4]:
        cause, verdict = unknown[0].detail, "unknown"
    else:
        cause = "the policy allows it; whether upstream answers is unknown until it is tried"
        verdict = "nothing of ours stops it"
    said_by = "unknown" if verdict == "unknown" else "allowed"
    return Explanation(
        steps, None, said_by, cause, verdict, None, (), "", is_observed, tuple(notes)
    )

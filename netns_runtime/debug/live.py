"""Asks a running sandbox: what happened lately, what happens now, and what its policy is.

All of it comes over the supervisor's control socket, so nothing here touches the sandbox. A sandbox
that has gone, or is of a version that does not know the question, ends in one StepError; the end of
a followed stream is the end of the iterator.
"""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from netns_runtime import state
from netns_runtime.control import MESSAGE, ask, path_of
from netns_runtime.debug.evidence import Evidence
from netns_runtime.errors import StepError, UsageError, step_error

if TYPE_CHECKING:
    from collections.abc import Iterator

    from netns_runtime.policy import Policy


_RCVBUFFORCE: Final = 33
"""include/uapi/asm-generic/socket.h."""


def chosen(name: str | None) -> state.Record:
    """The sandbox of that name, or the only one that runs. Raises UsageError."""
    records, taken, _ = state.survey()
    if name is None:
        if len(records) == 1:
            return records[0]
        raise UsageError(
            "no sandbox is running" if not records else f"{len(records)} sandboxes are running",
            remedy="start one with netns-run" if not records else "name one from netns-debug list",
        )
    for record in records:
        if record.name == name:
            return record
    if name in taken:
        raise UsageError(f"sandbox {name} is still starting", remedy="try again")
    raise UsageError(
        f"no sandbox called {name} is running",
        remedy="see netns-debug list; of one that has gone, its --audit file tells",
    )


def recent(name: str) -> Evidence:
    """The last 1,000 or so events of the sandbox: its supervisor's and its proxy's, by time."""
    answer = _answered(ask(name, {"command": "recent"}))
    lost = int(answer.get("lost", 0))
    notes = (_forgotten(lost),) if lost else ()
    return Evidence(f"sandbox {name}", tuple(answer.get("events", ())), notes, lost)


def subscribe(name: str, patience: float | None = None) -> Iterator[dict[str, Any]]:
    """Events from now on: {"event": {...}}, and "lost": n with it where we were too slow.

    Without `patience` it waits for as long as it takes; with it, {} stands for so many seconds in
    which nothing came. The iterator ends with the sandbox. Closing it ends the subscription.
    """
    return _stream(follow(name), patience)


def follow(name: str) -> socket.socket:
    """As `subscribe`, the socket itself: a message is {"event": {...}} and perhaps "lost"."""
    sock = asked(name, {"command": "subscribe"})
    try:
        # The first answer says that events are being kept for us.
        _answered(json.loads(sock.recv(MESSAGE) or b'{"error": "it has gone"}'))
    except (OSError, ValueError) as error:
        sock.close()
        raise step_error(f"sandbox {name}", error, remedy="see netns-debug list") from error
    except StepError:
        sock.close()
        raise
    return sock


def asked(name: str, request: dict[str, Any]) -> socket.socket:
    """A socket on which more than one answer comes. The caller closes it."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    try:
        sock.setsockopt(socket.SOL_SOCKET, _RCVBUFFORCE, 4 << 20)
        sock.settimeout(10.0)
        sock.connect(str(path_of(name)))
        sock.send(json.dumps(request).encode("ascii"))
    except OSError as error:
        sock.close()
        raise step_error(f"sandbox {name}", error, remedy="see netns-debug list") from error
    return sock


def _stream(sock: socket.socket, patience: float | None) -> Iterator[dict[str, Any]]:
    with sock:
        sock.settimeout(patience)
        while True:
            try:
                data = sock.recv(MESSAGE)
            except TimeoutError:
                yield {}
                continue
            except OSError:
                return
            if not data:
                return
            yield _answered(json.loads(data))


@dataclass(frozen=True, slots=True)
class InForce:
    """What a sandbox decides by now. `policy` is None where this version cannot read it.

    `totals` are the exact counts of refused connects (counts.tally), `packets` the gateway's nft
    counters, `destinations` refused connects by destination (counts.counts_of), each with the
    `host` its virtual address stands for.
    """

    policy: Policy | None
    redirect: bool
    report: bool
    totals: dict[str, int]
    packets: dict[str, int]
    destinations: tuple[dict[str, Any], ...]
    recent: Evidence


def in_force(name: str) -> InForce:
    """Policy, counters and recent events in one answer of the supervisor."""
    answer = _answered(ask(name, {"command": "situation"}))
    lost = int(answer.get("lost", 0))
    notes = (_forgotten(lost),) if lost else ()
    return InForce(
        policy=_policy_of(answer.get("policy", "")),
        redirect=bool(answer.get("redirect", True)),
        report=bool(answer.get("report", False)),
        totals=dict(answer.get("totals", {})),
        packets=dict(answer.get("packets", {})),
        destinations=tuple(answer.get("destinations", ())),
        recent=Evidence(f"sandbox {name}", tuple(answer.get("events", ())), notes, lost),
    )


def _policy_of(text: str) -> Policy | None:
    # pickle and base64 themselves, in Python, take longer to import than this takes.
    from _pickle import loads
    from binascii import a2b_base64

    from netns_runtime.policy import Policy

    try:
        # From the supervisor, which is root as we are, over a socket that only root can reach.
        policy = loads(a2b_base64(text))
    except Exception:  # another version's: whatever unpickling raises
        return None
    return policy if isinstance(policy, Policy) else None


def _answered(answer: dict[str, Any]) -> dict[str, Any]:
    if "error" in answer:
        raise StepError(str(answer["error"]))
    return answer


def _forgotten(lost: int) -> str:
    return f"{lost} earlier events are no longer remembered: --audit FILE would keep all"

"""The audit vocabulary: which events there are and which fields they carry.

An event is a flat dict. `event_of` checks names at birth, so that a misspelt field is a bug here
and not a surprise in somebody's log reader. Fields whose value is None are left out.
"""

from __future__ import annotations

import time
from functools import lru_cache
from typing import Any, Final

EVENTS: Final = frozenset(
    {
        "sandbox.started",
        "sandbox.exited",
        "connect.refused",
        "dns.answered",
        "dns.refused",
        "flow.decided",
        "flow.closed",
        "http.request",
        "ws.opened",
        "ws.closed",
        "ws.message",
        "secret.substituted",
        "secret.withheld",
        "publish.request",
    }
)

FIELDS: Final = frozenset(
    {
        "pid",
        "comm",
        "exe",
        "host",
        "address",
        "port",
        "protocol",
        "entry",
        "action",
        "reason",
        "rule",
        "said_by",
        "bytes_in",
        "bytes_out",
        "duration_ms",
        # Not in the contract's list, told in README.md: free text, counts and ids.
        "detail",
        "remedy",
        "flow",
        "count",
        "counted_by",
        "counted_bpf",
        "counted_nft",
        "suppressed",
        "direct_tcp",
        "direct_udp",
        "direct_icmp",
        "direct_other",
        "spoofed_source",
        "code",
        "method",
        "path",
        "status",
        "probe",
        "uid",
        "ppid",
        "command",
        "secret",
        "slot",
        "messages_in",
        "messages_out",
        # Of a WebSocket: its handshake's headers, and the silence before its end.
        "origin",
        "offered",
        "chosen",
        "server",
        "idle_ms",
    }
)


def timestamp() -> str:
    """Now, RFC 3339, UTC, microseconds: `2026-11-21T08:00:00.000000Z`."""
    seconds, rest = divmod(time.time_ns(), 1_000_000_000)
    return f"{_second(seconds)}.{rest // 1000:06}Z"


# A busy proxy writes thousands of lines in the same second.
@lru_cache(maxsize=1)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


def event_of(event: str, sandbox: str, **fields: Any) -> dict[str, Any]:
    """Build one audit event. Raises ValueError for a name that is not in the vocabulary."""
    if event not in EVENTS:
        raise ValueError(f"no audit event is called {event!r}")
    if not fields.keys() <= FIELDS:
        raise ValueError(f"no audit field is called {min(fields.keys() - FIELDS)!r}")
    line: dict[str, Any] = {"event": event, "time": timestamp(), "sandbox": sandbox}
    line |= {key: value for key, value in fields.items() if value is not None}
    return line

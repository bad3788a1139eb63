"""What has no packet, as journal entries in the file: what was refused before it could be one.

`journal_of` is pure. Wireshark and tshark list a journal entry among the packets by its time; the
fields that are not the journal's own begin with NETNS_.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from netns_runtime.debug.text import shown, where_of, who_of

if TYPE_CHECKING:
    from collections.abc import Mapping

_OURS: Final = {"pid": "_PID", "comm": "_COMM", "exe": "_EXE"}
_EVENT: Final = ("event", "reason", "rule", "host", "address", "port", "protocol", "count", "flow")
_WHY: Final = ("reason", "detail", "remedy")
_WARNING: Final = "4"


def microseconds_of(time: str) -> int | None:
    """RFC 3339 as microseconds since the epoch; None for what is no time."""
    try:
        return round(datetime.fromisoformat(time).timestamp() * 1_000_000)
    except (ValueError, OverflowError, OSError):
        return None


def journal_of(event: Mapping[str, Any]) -> dict[str, str] | None:
    """The entry for an event that says no, or that something failed; None for any other."""
    name = str(event.get("event", ""))
    is_failure = name == "flow.closed" and "reason" in event
    if event.get("action") != "refuse" and not is_failure:
        return None
    when = microseconds_of(str(event.get("time", "")))
    if when is None:
        return None
    verb = "closed" if is_failure else "refused"
    times = f" {event['count']} times" if event.get("count", 1) != 1 else ""
    why = "; ".join(
        shown(event[key], 500) for key in ("reason", "detail", "remedy") if key in event
    )
    fields = {
        "__REALTIME_TIMESTAMP": str(when),
        "MESSAGE": f"{verb} {who_of(event)} -> {where_of(event)}{shown(times)}: {why}",
        "PRIORITY": _WARNING,
        "SYSLOG_IDENTIFIER": "netns-run",
    }
    fields |= {new: shown(event[old]) for old, new in _OURS.items() if old in event}
    fields |= {f"NETNS_{key.upper()}": shown(event[key]) for key in _EVENT if key in event}
    return fields

"""Who ended a WebSocket and what an event says, in words; the parts of every explanation. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from netns_runtime.debug.text import named, shown, where_of, who_of

if TYPE_CHECKING:
    from netns_runtime.debug.evidence import Event
    from netns_runtime.debug.wslives import Life


@dataclass(frozen=True, slots=True)
class Explanation:
    """`key` names the way it failed, for programs; the others are sentences of printable ASCII."""

    key: str
    who: str
    evidence: tuple[str, ...]
    usually: str
    do: str


def upstream_of(life: Life) -> str:
    address, where = life.get("address"), where_of(life.last)
    at = f" at {shown(address)}" if address and address != life.get("host") else ""
    return f"upstream ({where}{at})"


def client_of(life: Life) -> str:
    holder: Event = {key: life.get(key) for key in ("comm", "pid") if life.get(key) is not None}
    return f"the client, {who_of(holder)}"


def party_of(life: Life, said_by: str | None = None) -> str:
    name = said_by or life.said_by
    if name == "upstream":
        return upstream_of(life)
    if name == "sandbox":
        return client_of(life)
    if name == "policy":
        return "netns-runtime, by policy"
    return "netns-runtime's proxy" if name == "proxy" else "unknown"


def line_of(event: Event, *keys: str) -> str:
    """`name at HH:MM:SS.mmm: key value, key value`, of what the event has."""
    said = [f"{key} {_value(event[key])}" for key in keys if event.get(key) is not None]
    when = str(event.get("time", ""))[11:23]
    return f"{shown(event['event'])}{f' at {shown(when)}' if when else ''}: {', '.join(said)}"


def _value(value: object) -> str:
    """In quotes where it could pass for another key: a close reason is its sender's words."""
    return named(value, 300) if "," in str(value) else shown(value, 300)


def cut_of(event: Event) -> str:
    detail = str(event.get("detail") or "")
    who = "the client's" if event.get("said_by") == "sandbox" else "upstream's"
    # By words with a space between: a detail may hold a host's name, which is upstream's choice.
    if "connection reset" in detail.lower():
        return f"a TCP reset from {who} side"
    if "without a close frame" in detail:
        return f"an orderly TCP end (FIN) from {who} side, without a close frame before it"
    return f"the connection was lost at {who} side"


def as_fields(life: Life, found: Explanation) -> dict[str, Any]:
    """One life for `--json`: contract names, and the explanation's."""
    keys = (
        *("sandbox", "flow", "host", "port", "address", "entry", "pid", "comm", "exe", "path"),
        *("origin", "offered", "chosen", "server", "status", "code", "said_by", "reason", "rule"),
        *("messages_in", "messages_out", "bytes_in", "bytes_out", "duration_ms", "idle_ms"),
    )
    said = {key: value for key in keys if (value := life.get(key)) is not None}
    return {
        "time": life.last.get("time"),
        "stage": life.stage,
        "is_websocket": life.is_websocket,
        "count": life.count,
        **said,
        "kind": found.key,
        "ended_by": found.who,
        "evidence": list(found.evidence),
        "usually": found.usually,
        "do": found.do,
    }

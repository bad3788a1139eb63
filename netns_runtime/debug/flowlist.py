"""The flows of a sandbox as values: what the proxy says of them, joined with what the kernel knows.

`sample` asks once; `rows_of` makes rows of one sample or of two, with rates between them. A row is
flat JSON: the audit's names, `state` open or closed, `rate_in` and `rate_out` in bytes per second,
and under `client` and `upstream` the kernel's view of the two sockets (sockdiag.TcpInfo). What is
not known is left out. Raises StepError where the sandbox has gone.
"""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from netns_runtime.control import ask
from netns_runtime.debug import sockdiag
from netns_runtime.errors import StepError
from netns_runtime.namespace import netns

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from netns_runtime.state import Record

Row = dict[str, Any]

MOST_SOCKETS: Final = 2000
"""Flows whose sockets are asked for; the others are listed without."""
_WAYS: Final = ("in", "out")
_CLOSED: Final = (
    *("flow", "host", "port", "address", "protocol", "entry", "pid", "comm", "exe", "time"),
    *("bytes_in", "bytes_out", "duration_ms", "reason", "said_by", "detail", "remedy", "action"),
)


@dataclass(frozen=True, slots=True)
class Sample:
    """The open flows at one moment; `at` is monotonic seconds."""

    at: float
    flows: tuple[Row, ...]


def sample(record: Record, *, sockets: bool = True) -> Sample:
    """Ask the proxy for its flows and, with `sockets`, the kernel for theirs."""
    answer = ask(record.name, {"command": "flows"})
    if "error" in answer:
        raise StepError(str(answer["error"]))
    at, flows = time.monotonic(), answer["flows"]
    if sockets and flows:
        places = {"client": record.gateway_ns, "upstream": f"/proc/{record.proxy}/ns/net"}
        for side, namespace in places.items():
            _add_sockets(flows[:MOST_SOCKETS], side, namespace)
    return Sample(at, tuple(flows))


def _add_sockets(flows: Sequence[Row], side: str, namespace: str) -> None:
    ends = [flow.get(f"{side}_socket") for flow in flows]
    if not any(ends):
        return
    try:
        fd = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise StepError("the sandbox has gone", remedy="see netns-debug list") from error
    try:
        infos = netns.run_in(fd, lambda: sockdiag.ask(ends))
    except OSError:
        return  # without tcp_diag in the kernel: what is not known is left out
    finally:
        os.close(fd)
    for flow, info in zip(flows, infos, strict=True):
        if info is not None:
            flow[side] = {key: value for key, value in asdict(info).items() if value is not None}


def rows_of(now: Sample, before: Sample | None = None) -> list[Row]:
    """The open flows, with their rates since `before`, where that knew them, and else in all."""
    known = {flow["flow"]: flow for flow in before.flows} if before is not None else {}
    rows = []
    for flow in now.flows:
        earlier = known.get(flow["flow"])
        row = {key: value for key, value in flow.items() if not key.endswith("_socket")}
        row["state"] = "open"
        if before is not None:
            seconds = now.at - before.at
            if earlier is None:
                seconds = min(seconds, flow.get("duration_ms", 0) / 1000) or seconds
            row |= _rates(flow, earlier or {}, seconds)
        rows.append(row)
    return rows


def _rates(flow: Row, earlier: Row, seconds: float) -> dict[str, float]:
    if seconds <= 0:
        return {}
    moved = {way: flow.get(f"bytes_{way}", 0) - earlier.get(f"bytes_{way}", 0) for way in _WAYS}
    return {f"rate_{way}": round(max(0, octets) / seconds, 1) for way, octets in moved.items()}


def closed_of(events: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Rows of flows that have closed, the newest first, from audit events in order."""
    lives: dict[Any, dict[str, Any]] = {}
    rows = []
    for event in events:
        number = event.get("flow")
        if event.get("event") == "ws.closed":
            names = {"code": "code", "messages_in": "messages_in", "messages_out": "messages_out"}
            lives[number] = {new: event[old] for old, new in names.items() if old in event}
        elif event.get("event") == "flow.closed":
            row = {key: event[key] for key in _CLOSED if key in event}
            row["state"] = "closed"
            if number in lives:
                row |= {"websocket": "closed", **lives.pop(number)}
            rows.append(row)
    return rows[::-1]

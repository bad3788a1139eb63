"""What `netns-debug metrics` tells: the families, and how they are filled for one sandbox.

Refused connects are the kernel's exact counts, the rest is what the proxy has added up
(proxy/tallies.py) and what the kernel says of processes and the cgroup. A sandbox that does not
answer has `netns_sandbox_up` 0 and what could be had; nothing is made up. Label names follow the
audit's.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from netns_runtime.control import ask
from netns_runtime.counts import counts_of, unregistered_of
from netns_runtime.debug.exposition import Family
from netns_runtime.errors import NetnsError
from netns_runtime.firewall.ruleset import REASONS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from netns_runtime.debug.exposition import Kind
    from netns_runtime.state import Record

PATIENCE: Final = 5.0
_NOT_REASONS: Final = frozenset({"count", "counted_bpf", "counted_nft", "suppressed"})
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")

FAMILIES: Final[dict[str, tuple[Kind, str]]] = {
    "netns_sandboxes": ("gauge", "Running sandboxes."),
    "netns_sandbox_info": ("gauge", "One for each sandbox; which probe refuses, bpf or nft."),
    "netns_sandbox_up": ("gauge", "Whether the sandbox's supervisor and proxy answered."),
    "netns_sandbox_start_time_seconds": ("gauge", "Unix time at which the sandbox was started."),
    "netns_refused_connects_total": (
        "counter",
        "Direct connects refused by the kernel, by reason; exact, never sampled.",
    ),
    "netns_refused_connects_counted_total": (
        "counter",
        "The same by who counted them: bpf (probe) or nft (gateway).",
    ),
    "netns_refused_connect_events_suppressed_total": (
        "counter",
        "Refused connects that are counted but were not told as events of their own.",
    ),
    "netns_unregistered_refused_connects_total": (
        "counter",
        "Connects the probe refused from namespaces that no sandbox has; of all sandboxes.",
    ),
    "netns_dns_refused_lookups_total": (
        "counter",
        "Lookups refused by policy DNS, by reason; A and AAAA of a name are one.",
    ),
    "netns_dns_names_answered_total": ("counter", "Different names answered by policy DNS."),
    "netns_decisions_total": (
        "counter",
        "The proxy's decisions about flows, by entry, action and, where refused, reason.",
    ),
    "netns_flows_closed_total": (
        "counter",
        "Flows that ended, by reason (empty: both sides ended) and by who said so.",
    ),
    "netns_flows_active": ("gauge", "Open flows, by entry."),
    "netns_connections_active": ("gauge", "Connections that clients hold open to the proxy."),
    "netns_websockets_active": ("gauge", "Open WebSockets that are terminated."),
    "netns_websockets_opened_total": ("counter", "WebSockets opened, of those terminated."),
    "netns_websockets_closed_total": (
        "counter",
        "WebSockets that ended, by close code and who said so.",
    ),
    "netns_websocket_messages_total": (
        "counter",
        "Messages of WebSockets that ended, by direction (out is towards upstream).",
    ),
    "netns_http_requests_total": (
        "counter",
        "HTTP requests that are looked into, by method, status and who answered.",
    ),
    "netns_secrets_total": ("counter", "Secrets put into requests, or withheld from them."),
    "netns_transferred_bytes_total": (
        "counter",
        "Bytes of all flows, open ones included, by direction (out is towards upstream).",
    ),
    "netns_upstream_connect_duration_seconds": (
        "histogram",
        "From the decision to the connection with upstream.",
    ),
    "netns_http_response_delay_seconds": (
        "histogram",
        "From a request's head to the beginning of upstream's response.",
    ),
    "netns_flow_duration_seconds": ("histogram", "How long flows lived."),
    "netns_websocket_duration_seconds": ("histogram", "How long WebSockets lived."),
    "netns_process_cpu_seconds_total": ("counter", "CPU time of our processes of a sandbox."),
    "netns_process_resident_memory_bytes": ("gauge", "Resident memory of our processes."),
    "netns_process_open_fds": ("gauge", "Open descriptors of our processes."),
    "netns_sandbox_cpu_seconds_total": ("counter", "CPU time of everything inside."),
    "netns_sandbox_memory_bytes": ("gauge", "Memory charged to the sandbox's cgroup."),
    "netns_sandbox_processes": ("gauge", "Processes inside."),
}

# The proxy's counter, the family, the label names.
_COUNTS: Final = {
    "dns_refused": ("netns_dns_refused_lookups_total", ("reason",)),
    "dns_names": ("netns_dns_names_answered_total", ()),
    "decisions": ("netns_decisions_total", ("entry", "action", "reason")),
    "closed": ("netns_flows_closed_total", ("reason", "said_by")),
    "requests": ("netns_http_requests_total", ("method", "code", "said_by")),
    "websockets": ("netns_websockets_opened_total", ()),
    "websocket_closes": ("netns_websockets_closed_total", ("code", "said_by")),
    "messages": ("netns_websocket_messages_total", ("direction",)),
    "secrets": ("netns_secrets_total", ("action",)),
}
_TIMES: Final = {
    "connect": "netns_upstream_connect_duration_seconds",
    "response": "netns_http_response_delay_seconds",
    "flow": "netns_flow_duration_seconds",
    "websocket": "netns_websocket_duration_seconds",
}


def families_of(records: Iterable[Record]) -> list[Family]:
    """All families, filled for these sandboxes."""
    found = {name: Family(name, kind, about) for name, (kind, about) in FAMILIES.items()}
    number = 0
    pins = set()
    for record in records:
        number += 1
        pins |= {record.pins} if record.pins else set()
        labels = {"sandbox": record.name}
        found["netns_sandbox_info"].add(1, {**labels, "probe": record.probe})
        _add_start(found, record, labels)
        is_up = _add_refused(found, record, labels) and _add_tallies(found, record, labels)
        found["netns_sandbox_up"].add(int(is_up), labels)
        _add_processes(found, record, labels)
        _add_cgroup(found, Path(record.cgroup), labels)
    found["netns_sandboxes"].add(number, {})
    if pins:
        unregistered = sum(map(unregistered_of, pins))
        found["netns_unregistered_refused_connects_total"].add(unregistered, {})
    return list(found.values())


def _add_start(found: dict[str, Family], record: Record, labels: dict[str, str]) -> None:
    from datetime import datetime

    try:
        started = datetime.fromisoformat(record.started).timestamp()
    except ValueError:
        return
    found["netns_sandbox_start_time_seconds"].add(started, labels)


def _add_refused(found: dict[str, Family], record: Record, labels: dict[str, str]) -> bool:
    try:
        totals = counts_of(record)["totals"]
    except (NetnsError, OSError):
        return False
    # Each series exists before the first refusal, so that the first is an increase.
    for reason in dict.fromkeys((*REASONS.values(), *totals)):
        if reason not in _NOT_REASONS:
            count = totals.get(reason, 0)
            found["netns_refused_connects_total"].add(count, {**labels, "reason": reason})
    for who in ("bpf", "nft"):
        counted = {**labels, "counted_by": who}
        found["netns_refused_connects_counted_total"].add(totals[f"counted_{who}"], counted)
    suppressed = found["netns_refused_connect_events_suppressed_total"]
    suppressed.add(totals["suppressed"], labels)
    return True


def _add_tallies(found: dict[str, Family], record: Record, labels: dict[str, str]) -> bool:
    try:
        answer = ask(record.name, {"command": "tallies"}, PATIENCE)
    except NetnsError:
        return False
    told = answer.get("tallies")
    if not isinstance(told, dict):
        return False
    add_told(found, told, labels)
    return True


def add_told(found: dict[str, Family], told: dict[str, Any], labels: dict[str, str]) -> None:
    """Fill in what the proxy added up (tallies.Tallies.told), as far as we know the names."""
    for name, values, count in told.get("counts", ()):
        if name in _COUNTS:
            counter, names = _COUNTS[name]
            found[counter].add(count, {**labels, **dict(zip(names, values, strict=False))})
    for name, times in told.get("times", {}).items():
        if name in _TIMES:
            family = found[_TIMES[name]]
            family.add_histogram(times["bounds"], times["counts"], times["sum"], labels)
    for way in ("in", "out"):
        moved = told.get(f"bytes_{way}", 0)
        found["netns_transferred_bytes_total"].add(moved, {**labels, "direction": way})
    active = {"explicit": 0, "redirected": 0, **dict(told.get("active", ()))}
    for entry, count in active.items():
        found["netns_flows_active"].add(count, {**labels, "entry": entry})
    found["netns_websockets_active"].add(told.get("open_websockets", 0), labels)
    found["netns_connections_active"].add(told.get("connections", 0), labels)


def _add_processes(found: dict[str, Family], record: Record, labels: dict[str, str]) -> None:
    for role, pid in (("supervisor", record.supervisor), ("proxy", record.proxy)):
        own = {**labels, "process": role}
        try:
            text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
            open_fds = len(os.listdir(f"/proc/{pid}/fd"))
        except OSError:
            continue
        fields = text.rpartition(")")[2].split()
        cpu = (int(fields[11]) + int(fields[12])) / _TICKS
        found["netns_process_cpu_seconds_total"].add(cpu, own)
        found["netns_process_resident_memory_bytes"].add(int(fields[21]) * _PAGE, own)
        found["netns_process_open_fds"].add(open_fds, own)


def _add_cgroup(found: dict[str, Family], cgroup: Path, labels: dict[str, str]) -> None:
    """As far as the kernel accounts: cpu.stat always, memory where that controller is on."""
    cpu = _word_of(cgroup / "cpu.stat", "usage_usec")
    if cpu is not None:
        found["netns_sandbox_cpu_seconds_total"].add(cpu / 1e6, labels)
    memory = _word_of(cgroup / "memory.current", None)
    if memory is not None:
        found["netns_sandbox_memory_bytes"].add(memory, labels)
    try:
        inside = (cgroup / "cgroup.procs").read_text(encoding="ascii").split()
    except OSError:
        return
    found["netns_sandbox_processes"].add(len(inside), labels)


def _word_of(path: Path, key: str | None) -> int | None:
    try:
        text = path.read_text(encoding="ascii")
    except OSError:
        return None
    for line in text.splitlines():
        words = line.split()
        if key is None or words[0] == key:
            return int(words[-1])
    return None

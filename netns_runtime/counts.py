"""A running sandbox's counts as another process reads them: the probe's maps and the gateway's nft.

Both are read from the kernel at the moment of asking; nothing is cached or estimated.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from netns_runtime.errors import NetnsError, StepError
from netns_runtime.firewall.ruleset import REASONS
from netns_runtime.namespace import netns

if TYPE_CHECKING:
    from netns_runtime.state import Record


def counts_of(record: Record) -> dict[str, Any]:
    """`totals` (as audit fields) and `destinations` (most frequent first) of a sandbox.

    Raises StepError when it has gone meanwhile.
    """
    from netns_runtime.firewall import nft

    try:
        gateway = os.open(record.gateway_ns, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise StepError(f"sandbox {record.name} has gone", remedy="see netns-debug list") from error
    try:
        counters = netns.run_in(gateway, nft.read_counters)
    finally:
        os.close(gateway)
    by_reason: dict[str, int] = {}
    destinations: list[dict[str, Any]] = []
    counted_bpf = suppressed = 0
    if record.probe == "bpf":
        counted_bpf, suppressed = _read_probe(record, by_reason, destinations)
    counted_nft = 0
    for counter, reason in REASONS.items():
        packets = counters.packets[counter]
        counted_nft += packets
        by_reason[reason] = by_reason.get(reason, 0) + packets
    for (address, protocol, port), count in counters.destinations.items():
        destinations.append(
            {
                "count": count,
                "reason": f"direct_{protocol}",
                "address": str(address),
                "port": port,
                "protocol": protocol,
                "counted_by": "nft",
            }
        )
    totals = {
        "count": counted_bpf + counted_nft,
        "counted_bpf": counted_bpf,
        "counted_nft": counted_nft,
        "suppressed": suppressed,
        **{reason: count for reason, count in by_reason.items() if count},
        "accepted_proxy_packets": counters.packets["accepted_proxy"],
        "stray_tcp_packets": counters.packets["stray_tcp"],
    }
    destinations.sort(key=lambda entry: -entry["count"])
    return {"sandbox": record.name, "probe": record.probe, "totals": totals, "destinations": destinations}


def _read_probe(
    record: Record, by_reason: dict[str, int], destinations: list[dict[str, Any]]
) -> tuple[int, int]:
    from netns_runtime.probes.pins import ensure_probe

    try:
        with ensure_probe() as probe:
            totals = probe.totals(record.cookie)
            if totals is None:
                return 0, 0
            by_reason.update(totals.refused)
            for entry in probe.destinations(record.cookie):
                destinations.append(
                    {
                        "count": entry.count,
                        "reason": entry.reason,
                        "address": str(entry.address),
                        "port": entry.port,
                        "protocol": entry.protocol,
                        "pid": entry.pid,
                        "comm": entry.comm,
                        "uid": entry.uid,
                        "counted_by": "bpf",
                    }
                )
            return totals.total, totals.suppressed + totals.lost
    except NetnsError:
        return 0, 0

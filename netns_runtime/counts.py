"""How many connects were refused, from both of the kernel's counters, for people and the audit.

The probe counts what its hooks refuse and nft what reached the gateway; no connect is in both, so
the sum is exact. `counts_of` reads a running sandbox's from another process; nothing is cached or
estimated.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from netns_runtime.errors import NetnsError, StepError
from netns_runtime.firewall.ruleset import REASONS
from netns_runtime.namespace import netns

if TYPE_CHECKING:
    from netns_runtime.firewall.nft import Counters
    from netns_runtime.probes.records import Destination, Totals
    from netns_runtime.state import Record


def tally(probe: Totals | None, gateway: Counters | None) -> dict[str, int]:
    """Audit fields: `count` is the sum, then who counted, events not told, and each reason."""
    by_reason: dict[str, int] = dict(probe.refused) if probe is not None else {}
    counted_nft = 0
    if gateway is not None:
        for counter, reason in REASONS.items():
            packets = gateway.packets[counter]
            by_reason[reason] = by_reason.get(reason, 0) + packets
            counted_nft += packets
    counted_bpf = probe.total if probe is not None else 0
    return {
        "count": counted_bpf + counted_nft,
        "counted_bpf": counted_bpf,
        "counted_nft": counted_nft,
        "suppressed": probe.suppressed + probe.lost if probe is not None else 0,
        **{reason: count for reason, count in by_reason.items() if count},
    }


def counts_of(record: Record) -> dict[str, Any]:
    """`totals` (see tally) and `destinations` (most frequent first) of a running sandbox.

    Raises StepError when it has gone meanwhile.
    """
    counters = _read_gateway(record)
    totals, destinations = _read_probe(record)
    destinations += gateway_destinations(counters)
    destinations.sort(key=lambda entry: -entry["count"])
    return {
        "sandbox": record.name,
        "probe": record.probe,
        "totals": tally(totals, counters),
        "destinations": destinations,
        "packets": counters.packets,
    }


def gateway_destinations(counters: Counters) -> list[dict[str, Any]]:
    """What nft refused, by destination."""
    return [
        {
            "count": count,
            "reason": f"direct_{protocol}",
            "address": str(address),
            "port": port,
            "protocol": protocol,
            "counted_by": "nft",
        }
        for (address, protocol, port), count in counters.destinations.items()
    ]


def destination_fields(entry: Destination) -> dict[str, Any]:
    """What the probe refused at one destination, and who tried last."""
    return {
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


def totals_of(record: Record) -> dict[str, int]:
    """The counts alone (see tally), for who looks often."""
    counters = _read_gateway(record)
    if not record.pins:
        return tally(None, counters)
    from netns_runtime.probes.pins import open_set

    try:
        with open_set(Path(record.pins)) as probe:
            return tally(probe.totals(record.cookie), counters)
    except (NetnsError, OSError) as error:
        raise StepError(f"the probe of {record.name}: {error}") from error


def unregistered_of(pins: str) -> int:
    """Connects that this probe set refused, since it was pinned, from namespaces that no sandbox
    has; they are in no sandbox's totals. 0 where the set has gone."""
    from netns_runtime.probes.pins import open_set

    try:
        with open_set(Path(pins)) as probe:
            return probe.unknown_total()
    except (NetnsError, OSError):
        return 0


def _read_gateway(record: Record) -> Counters:
    from netns_runtime.firewall import nft

    try:
        gateway = os.open(record.gateway_ns, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise StepError(f"sandbox {record.name} has gone", remedy="see netns-debug list") from error
    try:
        return netns.run_in(gateway, nft.read_counters)
    finally:
        os.close(gateway)


def _read_probe(record: Record) -> tuple[Totals | None, list[dict[str, Any]]]:
    if not record.pins:
        return None, []
    from netns_runtime.probes.pins import open_set

    try:
        with open_set(Path(record.pins)) as probe:
            destinations = [
                destination_fields(entry) for entry in probe.destinations(record.cookie)
            ]
            return probe.totals(record.cookie), destinations
    except (NetnsError, OSError) as error:
        raise StepError(f"the probe of {record.name}: {error}") from error

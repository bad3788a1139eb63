"""Totals are exact whatever else is lost, and every sandbox has its own."""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

import pytest

from netns_runtime.probes import records
from netns_runtime.probes.pins import ensure_probe, remove_pins
from tests.support.probe import (
    REFUSED_IPV4,
    Cell,
    cell,
    guarded_cell,
    kill,
    own_parent,
    own_probe,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from netns_runtime.probes.probe import Probe

PROCESSES = 8
EACH = 20_011


@pytest.fixture(scope="module")
def probe() -> Iterator[Probe]:
    with own_probe() as probe:
        yield probe


@pytest.fixture(scope="module")
def parent() -> Iterator[Path]:
    with own_parent() as parent:
        yield parent


def flood(count: int, *, hosts: int = 1, port: int = 443) -> int:
    """Refused connects on one socket; how many were refused."""
    refused = 0
    addresses = [(f"198.51.{n // 250}.{n % 250}", port) for n in range(hosts)]
    with socket.socket() as sock:
        for number in range(count):
            refused += sock.connect_ex(addresses[number % hosts]) == errno.ECONNREFUSED
    return refused


def flood_ports(first: int, count: int) -> int:
    """One refused connect to each port."""
    return sum(flood(1, port=first + number) for number in range(count))


def test_counts_eight_processes_exactly_while_events_are_suppressed(
    probe: Probe, parent: Path
) -> None:
    with guarded_cell(probe, parent) as (made, registration):
        children = [made.start(lambda: flood(EACH)) for _ in range(PROCESSES)]
        assert [child.join() for child in children] == [EACH] * PROCESSES
        totals = registration.totals()
        assert totals.refused["direct_tcp"] == totals.total == PROCESSES * EACH
        assert totals.suppressed > 0
        assert totals.events + totals.suppressed + totals.lost == totals.total
        assert totals.events == len(registration.read_events())
        assert sum(entry.count for entry in registration.destinations()) == totals.total


def test_the_token_bucket_lets_a_burst_through_and_then_its_rate(
    probe: Probe, parent: Path
) -> None:
    with guarded_cell(probe, parent, rate=1, burst=5) as (made, registration):
        made.run(lambda: flood(1009))
        events = registration.read_events()
        assert 5 <= len(events) <= 5 + PROCESSES
        assert registration.totals().suppressed == 1009 - len(events)


def test_a_full_ring_loses_events_and_no_count(probe: Probe, parent: Path) -> None:
    with guarded_cell(probe, parent, rate=1_000_000, burst=1_000_000) as (made, registration):
        made.run(lambda: flood(2003))
        totals = registration.totals()
        assert totals.total == 2003
        assert totals.lost > 0
        assert len(registration.read_events(limit=5000)) == totals.events == 2003 - totals.lost


def test_the_ring_wraps_and_gives_every_event_once_in_order(probe: Probe, parent: Path) -> None:
    with guarded_cell(probe, parent, rate=1_000_000, burst=1_000_000) as (made, registration):
        ports = []
        for first in range(1, 2001, 400):
            made.run(partial(flood_ports, first, 400))
            assert select.select([registration], [], [], 0)[0]
            ports += [event.port for event in registration.read_events()]
        assert ports == list(range(1, 2001))
        assert not select.select([registration], [], [], 0)[0]


def test_evicted_destinations_are_told_and_the_total_stays(probe: Probe, parent: Path) -> None:
    with guarded_cell(probe, parent) as (made, registration):
        wanted = records.DETAILS + 1009

        def scan() -> int:
            with socket.socket() as sock:
                return sum(
                    sock.connect_ex((f"203.0.113.{n >> 8 & 255}", 1 + (n & 255))) != 0
                    for n in range(wanted)
                )

        made.run(scan)
        assert registration.totals().total == wanted
        assert registration.totals().details == wanted
        kept = registration.destinations()
        assert 0 < len(kept) < wanted
        assert sum(entry.count for entry in kept) == len(kept)


def test_a_process_that_exits_at_once_is_still_named(probe: Probe, parent: Path) -> None:
    with guarded_cell(probe, parent) as (made, registration):

        def body() -> list[int]:
            pid = os.fork()
            if pid == 0:
                with open("/proc/self/comm", "w", encoding="ascii") as file:
                    file.write("gone\x1b[2J")
                flood(1)
                os._exit(0)
            os.waitpid(pid, 0)
            return [os.getpid(), pid]

        started = time.time()
        parent_pid, pid = made.run(body)
        (event,) = registration.read_events()
        assert not os.path.exists(f"/proc/{pid}")
        assert (event.pid, event.ppid, event.comm) == (pid, parent_pid, "gone\\x1b[2J")
        assert abs(event.time - started) < 5
        executable = os.stat("/proc/self/exe")
        assert event.exe_inode == executable.st_ino
        device = os.major(executable.st_dev) << 20 | os.minor(executable.st_dev)
        assert event.exe_device == device


def test_two_sandboxes_with_the_same_addresses_do_not_mix(probe: Probe, parent: Path) -> None:
    with guarded_cell(probe, parent) as (one, first), guarded_cell(probe, parent) as (two, second):
        children = [one.start(lambda: flood(3001)), two.start(lambda: flood(5003))]
        for child in children:
            child.join()
        assert first.totals().total == 3001
        assert second.totals().total == 5003
        assert [entry.count for entry in first.destinations()] == [3001]
        assert {event.cookie for event in second.read_events()} == {two.cookie}


def test_displaced_sandboxes_count_as_well(probe: Probe, parent: Path) -> None:
    with cell(parent) as made, own_parent() as elsewhere:
        squatter = made.cookie + 2 * records.SANDBOXES
        empty = elsewhere / "squatter"
        empty.mkdir()
        with (
            probe.register(squatter, empty) as first,
            probe.register(made.cookie, made.cgroup) as second,
        ):
            made.run(lambda: flood(101))
            assert second.totals().total == 101
            assert first.totals().total == 0
        empty.rmdir()
        assert probe.totals(made.cookie) is None


def test_processes_outside_our_cgroups_are_not_judged(probe: Probe, parent: Path) -> None:
    with guarded_cell(probe, parent) as (made, registration):
        assert made.run(lambda: socket.socket().connect_ex((REFUSED_IPV4, 9)), guarded=False) == (
            errno.ENETUNREACH
        )
        assert registration.totals().total == 0


def test_a_killed_supervisor_leaves_what_reclaim_removes(probe: Probe, parent: Path) -> None:
    with guarded_cell(probe, parent) as (living, kept), cell(parent) as made:
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            probe.register(made.cookie, made.cgroup)
            os.write(writing, b"x")
            signal.pause()
        os.read(reading, 1)
        os.close(reading)
        os.close(writing)
        made.run(lambda: flood(7))
        assert probe.reclaim() == 0
        kill(pid)
        totals = probe.totals(made.cookie)
        assert totals is not None
        assert totals.total == 7
        assert probe.reclaim({made.cookie}) == 0
        assert probe.reclaim() == 1
        assert probe.totals(made.cookie) is None
        assert probe.destinations(made.cookie) == []
        assert probe.cookies() == [living.cookie]
        assert made.run(lambda: flood(1)) == 1
        assert kept.totals().total == 0


def test_registrations_at_once_get_a_ring_each(probe: Probe, parent: Path) -> None:
    cookies = [10_000_000 + records.SANDBOXES * n for n in range(2 * records.RINGS)]
    with own_parent() as elsewhere:
        cgroups = [elsewhere / str(cookie) for cookie in cookies]
        for cgroup in cgroups:
            cgroup.mkdir()
        with ThreadPoolExecutor(8) as pool:
            made = list(pool.map(probe.register, cookies, cgroups))
        assert sorted(probe.cookies()) == cookies
        rings = {os.path.basename(str(entry)) for entry in probe.directory.glob("ring_*")}
        assert len(rings) >= len(cookies)
        for registration in made:
            registration.close()
        assert probe.cookies() == []
        for cgroup in cgroups:
            cgroup.rmdir()


def test_launches_at_once_share_one_set(parent: Path) -> None:
    name = f"netns-runtime-test-{os.getpid()}"

    def launch() -> list[int]:
        with ensure_probe(name=name) as mine:
            with guarded_cell(mine, parent) as (made, registration):
                made.run(lambda: flood(11))
                total = registration.totals().total
            return [total, mine.directory.stat().st_ino]

    outside = Cell(os.open("/proc/self/ns/net", os.O_RDONLY), 0, parent)
    children = [outside.start(launch, guarded=False) for _ in range(4)]
    results = [child.join() for child in children]
    os.close(outside.fd)
    with ensure_probe(name=name) as mine:
        directory = mine.directory
    remove_pins(directory)
    assert [total for total, _ in results] == [11] * 4
    assert len({inode for _, inode in results}) == 1

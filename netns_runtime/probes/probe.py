"""The pinned probe, and one sandbox's registration with it: map entries, nothing compiled.

Attached to the sandbox's own cgroup, the programs stay until that cgroup is removed, whoever dies
before. While its namespace has no entry they refuse everything, so a sandbox is closed before
`register` and after `close`. Errors of the kernel come out as ProbeUnavailable from `register`;
reading and closing raise nothing for a sandbox that is already gone.

Rings are pooled. Putting a map into a map makes the kernel wait for a grace period (8 ms measured,
synchronize_rcu in maybe_wait_bpf_programs), which a launch should not pay; so a sandbox borrows the
first ring nobody has, by an atomic insert, and the next one gets it afterwards.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Final

from netns_runtime.probes import records, syscall
from netns_runtime.probes.hooks import HOOKS
from netns_runtime.probes.records import COOKIE, NUMBER, SLOT
from netns_runtime.probes.ring import RingReader
from netns_runtime.probes.unavailable import ProbeUnavailable

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path
    from types import TracebackType

    from netns_runtime.probes.records import Destination, Listed, RefusedConnect, Totals

MAPS: Final = (
    "sandboxes",
    "displaced",
    "slots",
    "lent",
    "details",
    "unknown",
    "dialling",
    "owners",
    "rings",
    "listed",
    "listings",
)
# Maps with entries of one sandbox, and whether the key (0) or the value (1) begins with its cookie.
_BY_COOKIE: Final = (
    ("listed", 0),
    ("details", 0),
    ("owners", 0),
    ("dialling", 1),
    ("slots", 1),
    ("lent", 1),
)
_POSSIBLE: Final = "/sys/devices/system/cpu/possible"


def possible_cpus(text: str) -> int:
    """CPUs that per-CPU maps have a value for, from the kernel's list: `0-3` or `0,2-5`."""
    return 1 + max(int(part.rpartition("-")[2]) for part in text.strip().split(","))


def started_at(pid: int) -> int:
    """When a process started, in ticks since boot, which with its pid names it; 0 if it is gone."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return int(file.read().rpartition(")")[2].split()[19])
    except (OSError, IndexError):
        return 0


def create_ring(rings: int, number: int, path: Path) -> int:
    """Add a ring to the pool of the map `rings`, pinned at `path`; its descriptor."""
    ring = syscall.create_map(syscall.RINGBUF, 0, 0, records.RING_BYTES, name="refused")
    syscall.update(rings, NUMBER.pack(number), NUMBER.pack(ring))
    syscall.pin(ring, str(path))
    return ring


class Probe:
    """The programs and maps of one set, open in this process. Serves any number of sandboxes."""

    def __init__(self, directory: Path, fds: dict[str, int]) -> None:
        self.directory = directory
        self._fds = fds
        with open(_POSSIBLE, encoding="ascii") as file:
            self._cpus = possible_cpus(file.read())

    def register(
        self,
        cookie: int,
        cgroup: Path,
        *,
        redirect: bool = False,
        resolver: bool = True,
        listed: Sequence[Listed] = (),
        rate: int = records.EVENT_RATE,
        burst: int = records.EVENT_BURST,
    ) -> Registration:
        """Guard a sandbox: attach to its cgroup and enter its namespace's cookie.

        Call before CMD is in the cgroup; from then on what is not served is refused. With
        `redirect`, TCP to virtual addresses and to `listed` ones passes. `rate` is events per
        second, `burst` how many at once. Raises ProbeUnavailable; nothing is entered
        then. Costs about half a millisecond.
        """
        flags = records.FLAG_PROXY
        flags |= records.FLAG_RESOLVER if resolver else 0
        flags |= records.FLAG_REDIRECT if redirect else 0
        try:
            self._attach(cgroup)
            slot = self._insert("slots", cookie, self._claim(cookie))
        except OSError as error:
            raise ProbeUnavailable(
                f"cannot attach the probe to {cgroup}: {error.strerror}"
            ) from error
        try:
            number = self._insert("lent", 0, COOKIE.pack(cookie))
            ring = RingReader(self._ring_fd(number), records.RING_BYTES)
            ring.skip()
            value = records.sandbox_value(
                cookie, flags, slot, number, rate=rate, burst=burst, cpus=self._cpus
            )
            if slot != cookie % records.SANDBOXES:
                syscall.update(self._fds["displaced"], COOKIE.pack(cookie), NUMBER.pack(slot))
            self._list(cookie, NUMBER.pack(slot), listed)
            syscall.update(self._fds["sandboxes"], NUMBER.pack(slot), value)
        except OSError as error:
            self.forget(cookie)
            raise ProbeUnavailable(f"cannot register the sandbox: {error.strerror}") from error
        return Registration(self, cookie, ring)

    def _attach(self, cgroup: Path) -> None:
        fd = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for hook in HOOKS:
                program = self._fds[hook.program]
                try:
                    syscall.attach(fd, program, hook.attach_type)
                except OSError:
                    # EINVAL is also how the kernel says that it is attached already.
                    if syscall.id_of(program) not in syscall.attached(fd, hook.attach_type):
                        raise
        finally:
            os.close(fd)

    def _claim(self, cookie: int) -> bytes:
        pid = os.getpid()
        return SLOT.pack(cookie, 0, started_at(pid), pid, 0)

    def _insert(self, name: str, first: int, value: bytes) -> int:
        """Take the first free number from `first` on; inserting is what takes it."""
        for distance in range(records.SANDBOXES):
            number = (first + distance) % records.SANDBOXES
            with contextlib.suppress(FileExistsError):
                syscall.update(self._fds[name], NUMBER.pack(number), value, syscall.NOEXIST)
                return number
        raise ProbeUnavailable(
            f"{records.SANDBOXES} sandboxes are registered already", remedy="run netns-debug gc"
        )

    def _ring_fd(self, number: int) -> int:
        path = self.directory / f"ring_{number}"
        if path.exists():
            return syscall.open_pin(str(path))
        return create_ring(self._fds["rings"], number, path)

    def totals(self, cookie: int) -> Totals | None:
        """The exact counts of a sandbox; None when it is not registered."""
        slot = self._slot_of(cookie)
        if slot is None:
            return None
        size = records.SANDBOX.size * self._cpus
        value = syscall.lookup(self._fds["sandboxes"], slot, size) or b""
        return records.totals_of(value) if value.startswith(COOKIE.pack(cookie)) else None

    def destinations(self, cookie: int) -> list[Destination]:
        """Refusals by destination, most frequent first, as far as they were not evicted."""
        found = [
            records.destination_of(key, value)
            for key, value in self._entries("details")
            if COOKIE.unpack_from(key)[0] == cookie
        ]
        return sorted(found, key=lambda entry: -entry.count)

    def unknown_total(self) -> int:
        """Connects refused in a cgroup of ours from a namespace without an entry, since boot."""
        value = syscall.lookup(self._fds["unknown"], NUMBER.pack(0), 8 * self._cpus) or b""
        return sum(count for (count,) in COOKIE.iter_unpack(value))

    def cookies(self) -> list[int]:
        """The sandboxes that are registered now."""
        return [SLOT.unpack(value)[0] for _, value in self._entries("slots")]

    def owners_fd(self) -> int:
        """A new descriptor of the table of owners that can only look up; the caller closes it."""
        return syscall.open_pin(str(self.directory / "owners"), syscall.READ_ONLY)

    def reclaim(self, live: Collection[int] = ()) -> int:
        """Remove what killed supervisors left: how many sandboxes that was.

        A sandbox stays if its cookie is in `live` or its supervisor runs (pid and start time).
        """
        gone = []
        for _, value in self._entries("slots"):
            cookie, _, started, pid, _ = SLOT.unpack(value)
            if cookie not in live and started_at(pid) != started:
                gone.append(cookie)
        for cookie in gone:
            self.forget(cookie)
        return len(gone)

    def forget(self, cookie: int) -> None:
        """Remove every entry of a sandbox; its processes, if any are left, are refused from here.

        What is lent goes back last, so that no program writes to a ring for two sandboxes.
        """
        key = COOKIE.pack(cookie)
        slot = self._slot_of(cookie)
        if slot is not None:
            nothing = bytes(records.SANDBOX.size * self._cpus)
            syscall.update(self._fds["sandboxes"], slot, nothing)
        syscall.delete(self._fds["displaced"], key)
        for name, at in _BY_COOKIE:
            for entry in self._entries(name):
                if entry[at].startswith(key):
                    syscall.delete(self._fds[name], entry[0])

    def set_listed(self, cookie: int, listed: Sequence[Listed]) -> None:
        """Replace a sandbox's listed addresses: new ones pass before old ones stop to.

        Raises LookupError when it is not registered, OSError when the table is full.
        """
        slot = self._slot_of(cookie)
        if slot is None:
            raise LookupError(f"sandbox {cookie} is not registered")
        self._list(cookie, slot, listed)

    def _list(self, cookie: int, slot: bytes, listed: Sequence[Listed]) -> None:
        wanted = {
            records.listed_key(cookie, address, port)
            for address, ports in listed
            for port in (ports if ports is not None else (0,))
        }
        for key in wanted:
            syscall.update(self._fds["listed"], key, b"\1")
        syscall.update(self._fds["listings"], slot, NUMBER.pack(len(wanted)))
        for key, _ in self._entries("listed"):
            if key not in wanted and key.startswith(COOKIE.pack(cookie)):
                syscall.delete(self._fds["listed"], key)

    def _slot_of(self, cookie: int) -> bytes | None:
        key = COOKIE.pack(cookie)
        home = NUMBER.pack(cookie % records.SANDBOXES)
        for slot in (home, syscall.lookup(self._fds["displaced"], key, NUMBER.size)):
            if slot is not None:
                claim = syscall.lookup(self._fds["slots"], slot, SLOT.size) or b""
                if claim.startswith(key):
                    return slot
        return None

    def _entries(self, name: str) -> list[tuple[bytes, bytes]]:
        return syscall.entries(self._fds[name], *records.ENTRIES[name])

    def close(self) -> None:
        """Close this process's descriptors; the pinned set and what is attached stay."""
        for fd in self._fds.values():
            os.close(fd)
        self._fds = {}

    def __enter__(self) -> Probe:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Registration:
    """One guarded sandbox. Closing removes its entries; the cgroup stays closed to the outside."""

    def __init__(self, probe: Probe, cookie: int, ring: RingReader) -> None:
        self.probe = probe
        self.cookie = cookie
        self._ring: RingReader | None = ring

    def fileno(self) -> int:
        """The ring's descriptor: readable while there are events."""
        return self._ring.fileno() if self._ring is not None else -1

    def read_events(self, limit: int = 1024) -> list[RefusedConnect]:
        """Events since the last call, oldest first; never waits."""
        found = self._ring.read(limit) if self._ring is not None else []
        events = [records.event_of(data) for data in found]
        return [event for event in events if event.cookie == self.cookie]

    def totals(self) -> Totals:
        """The exact counts until now. Raises LookupError once closed."""
        found = self.probe.totals(self.cookie)
        if found is None:
            raise LookupError(f"sandbox {self.cookie} is not registered")
        return found

    def destinations(self) -> list[Destination]:
        """Refusals by destination, most frequent first."""
        return self.probe.destinations(self.cookie)

    def owners_fd(self) -> int:
        """A new read-only descriptor of the owners, for the proxy; the caller closes it."""
        return self.probe.owners_fd()

    def close(self) -> None:
        """Remove every entry. Twice is once."""
        if self._ring is None:
            return
        self.probe.forget(self.cookie)
        self._ring.close()
        self._ring = None

    def __enter__(self) -> Registration:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

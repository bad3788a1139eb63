"""What a refusal costs: the probe beside an empty hook and an nft reset, and what the host pays.

`python -m tests.bench.refusal`, as root. Every number is a ratio or a difference of two loops that
ran in turns in the same process tree, by medians of the pairs. Ends with 1 when a goal is missed or
a count is not exact. OVERHEAD goals: issue 2, "Speed".
"""

from __future__ import annotations

import os
import random
import struct
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Final

from netns_runtime.probes import syscall
from netns_runtime.probes.hooks import CGROUP_SOCK_ADDR, HOOKS
from tests.support.probe import REFUSED_IPV4, Cell, cell, guarded_cell, own_parent, own_probe

if TYPE_CHECKING:
    from collections.abc import Iterator

    from netns_runtime.probes.probe import Probe

EMPTY_GOAL: Final = 1.25
RESET_GOAL: Final = 1 / 3
HOST_GOAL: Final = 50 / 163
"""Issue 2 allows 50 ns where an empty hook's refusal took 163: a share, since machines differ."""
PROCESSES: Final = 8
MILLION: Final = 1_000_000
UNROUTED: Final = "203.0.113.1"
_CONNECT4: Final = HOOKS[0].attach_type
_RULES: Final = """
table ip bench {
  chain output {
    type filter hook output priority 0;
    ip daddr 192.0.2.0/24 tcp flags syn counter reject with tcp reset
  }
}
"""


def build(directory: str) -> str:
    """Compile the loop; its path."""
    loop = f"{directory}/connect_loop"
    source = Path(__file__).with_name("connect_loop.c")
    subprocess.run(["gcc", "-O2", "-Wall", "-o", loop, str(source)], check=True)
    os.chmod(directory, 0o755)
    return loop


class Loop:
    """Runs the C loop in a cell; ns per connect."""

    def __init__(self, program: str) -> None:
        self.program = program

    def __call__(
        self,
        where: Cell,
        mode: str,
        count: int,
        host: str = REFUSED_IPV4,
        *,
        guarded: bool = True,
        processes: int = 1,
    ) -> float:
        words = [self.program, mode, str(count), host, "443", str(processes)]

        def body() -> str:
            return subprocess.run(words, capture_output=True, text=True, check=True).stdout

        each, strange = where.run(body, guarded=guarded).split()
        if host == REFUSED_IPV4 and strange != "0":
            raise AssertionError(f"{strange} connects were not refused: {words}")
        return float(each)


def empty_program() -> int:
    """A hook that refuses and does nothing else: `return 0`."""
    code = struct.pack("=BBhi", 0xB7, 0, 0, 0) + struct.pack("=BBhi", 0x95, 0, 0, 0)
    return syscall.load_program(CGROUP_SOCK_ADDR, _CONNECT4, code, "empty")[0]


def attach_empty(where: Cell) -> None:
    """The empty hook for as long as the cell's cgroup is there."""
    program = empty_program()
    cgroup = os.open(where.cgroup, os.O_RDONLY)
    syscall.attach(cgroup, program, _CONNECT4)
    os.close(cgroup)
    os.close(program)


def add_reset(where: Cell) -> None:
    """What the gateway does, at its cheapest: no veth, one rule."""

    def body() -> None:
        subprocess.run(["ip", "route", "add", "192.0.2.0/24", "dev", "lo"], check=True)
        subprocess.run(["nft", "-f", "-"], input=_RULES, text=True, check=True)

    where.run(body, guarded=False)


def refusal(
    loop: Loop, probe: Probe, parent: Path, rounds: int
) -> tuple[list[tuple[str, bool]], float]:
    """The probe beside the empty hook and the nft reset, each with one open socket.

    Also gives the ns of a refusal by the empty hook.
    """
    with (
        cell(parent) as empty,
        cell(parent) as reset,
        guarded_cell(probe, parent) as (guarded, registration),
    ):
        attach_empty(empty)
        add_reset(reset)
        hook, ours, nft, ours_new, nft_new = [], [], [], [], []
        for _ in range(rounds):
            hook.append(loop(empty, "open", 100_003))
            ours.append(loop(guarded, "open", 100_003))
            nft.append(loop(reset, "open", 5_003))
            ours_new.append(loop(guarded, "fresh", 5_003))
            nft_new.append(loop(reset, "fresh", 5_003))
        exact = registration.totals().total == rounds * (100_003 + 5_003)
    to_empty = median(b / a for a, b in zip(hook, ours, strict=True))
    to_reset = median(a / b for a, b in zip(ours, nft, strict=True))
    new = median(a / b for a, b in zip(ours_new, nft_new, strict=True))
    lines = [
        (
            f"refused by the probe / by an empty hook: {to_empty:.2f}"
            f" ({median(ours):.0f} / {median(hook):.0f} ns; goal {EMPTY_GOAL})",
            to_empty <= EMPTY_GOAL,
        ),
        (
            f"refused by the probe / by an nft reset: {to_reset:.2f}"
            f" ({median(ours):.0f} / {median(nft):.0f} ns; goal {RESET_GOAL:.2f})",
            to_reset <= RESET_GOAL,
        ),
        (
            f"the same with a new socket each time: {new:.2f}"
            f" ({median(ours_new):.0f} / {median(nft_new):.0f} ns; no goal)",
            True,
        ),
        (f"all of them counted: {exact}", exact),
    ]
    return lines, median(hook)


def million(loop: Loop, probe: Probe, parent: Path) -> list[tuple[str, bool]]:
    """1,000,000 refused by eight processes, with events suppressed and not."""
    lines = []
    for label, rate in (("events limited to 100/s", 100), ("events limited to 1/s", 1)):
        with guarded_cell(probe, parent, rate=rate) as (guarded, registration):
            loop(guarded, "open", MILLION // PROCESSES, processes=PROCESSES)
            totals = registration.totals()
        exact = totals.total == MILLION and totals.suppressed > 0
        lines.append(
            (
                f"{PROCESSES} processes, {label}: {totals.total} of {MILLION} counted,"
                f" {totals.events} told, {totals.suppressed} suppressed",
                exact,
            )
        )
    return lines


@contextmanager
def attached(where: Path, programs: list[tuple[int, int]]) -> Iterator[None]:
    """Programs (descriptor, attach type) on a cgroup that nobody is in: what the host notices."""
    cgroup = os.open(where, os.O_RDONLY)
    try:
        for program, kind in programs:
            syscall.attach(cgroup, program, kind)
        yield
    finally:
        for program, kind in programs:
            syscall.detach(cgroup, program, kind)
        os.close(cgroup)


def host(loop: Loop, probe: Probe, rounds: int, refused: float) -> list[tuple[str, bool]]:
    """What a process in no cgroup of ours pays per connect while a sandbox runs.

    TCP, one open socket, to an address without a route: the hook runs and the rest is short, so
    that 10 ns show. The order within a round is shuffled, because drift must cancel. An empty hook
    beside it tells what the kernel itself takes as soon as any connect hook is attached anywhere.
    `refused`, ns of a refusal by an empty hook in this run, says how fast the machine is: 163 ns
    where the goals were set.
    """
    empty = empty_program()
    ours = [
        (syscall.open_pin(str(probe.directory / hook.program)), hook.attach_type) for hook in HOOKS
    ]
    sets: dict[str, list[tuple[int, int]]] = {
        "nothing": [],
        "empty": [(empty, _CONNECT4)],
        "probe": ours,
    }
    taken: dict[str, list[float]] = {name: [] for name in sets}
    order = list(sets)
    with own_parent() as parent, cell(parent) as outside:
        for _ in range(6 * rounds):
            random.shuffle(order)
            for name in order:
                with attached(outside.cgroup, sets[name]):
                    taken[name].append(loop(outside, "open", 20_011, UNROUTED, guarded=False))
    for program, _ in [*ours, (empty, 0)]:
        os.close(program)
    base = taken["nothing"]
    extra = {
        name: median(b - a for a, b in zip(base, values, strict=True))
        for name, values in taken.items()
    }
    share = extra["probe"] / refused
    return [
        (
            f"host, each connect while a sandbox runs: {extra['probe']:+.0f} ns of"
            f" {median(base):.0f} ({extra['empty']:+.0f} for an empty hook in place), as a share"
            f" of a refusal by an empty hook ({refused:.0f} ns): {share:.2f}"
            f" (goal {HOST_GOAL:.2f}: 50 ns of 163)",
            share <= HOST_GOAL,
        ),
    ]


def main() -> int:
    """Print every line; 1 when one of them misses its goal."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    with (
        tempfile.TemporaryDirectory(prefix="netns-bench-") as directory,
        own_probe() as probe,
        own_parent() as parent,
    ):
        loop = Loop(build(directory))
        lines, refused = refusal(loop, probe, parent, rounds)
        lines += million(loop, probe, parent)
        lines += host(loop, probe, rounds, refused)
    for text, reached in lines:
        sys.stdout.write(f"{'ok  ' if reached else 'MISS'} {text}\n")
    return 0 if all(reached for _, reached in lines) else 1


if __name__ == "__main__":
    sys.exit(main())

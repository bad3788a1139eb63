"""What `netns-debug trace` costs a refused connect, at each of its levels, and what it leaves out.

`python -m tests.bench.trace [ROUNDS]`, as root. In each round one sandbox refuses 100,000 connects
a second with nobody looking, with each level of `trace` in shuffled order, and with nobody looking
again; a ratio is the median of the rounds. Time is the CPU time of the loop, because others use the
machine too. What the dearer levels cost processes outside the sandbox is told beside it. Ends with
1 when a goal is missed or a count is not exact. Goal: issue 5, "Speed".
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Final

from netns_runtime.probes.records import EVENT_BURST, EVENT_RATE
from tests.support.run import NETNS_DEBUG, Running, environment

if TYPE_CHECKING:
    from collections.abc import Iterator

GOAL: Final = 1.10
RATE: Final = 100_000
SLICE: Final = 25_000
LONG: Final = 500_000
FLOOD: Final = 1_000_000
REFUSED: Final = ("203.0.113.5", "81")
ANY_CPU: Final = -1
SETTLING: Final = 0.3
"""Seconds for what is on its way to be printed, before the trace is interrupted."""
DEAR: Final = 3
"""Levels that compile programs first are measured in every third round."""


@dataclass(frozen=True, slots=True)
class Level:
    """How somebody looks, and where loop and tracer run. `goal` None: told, not judged."""

    label: str
    options: tuple[str, ...] = ()
    loop: int = ANY_CPU
    tracer: int = ANY_CPU
    goal: float | None = None
    every: int = 1


LEVELS: Final = (
    Level("trace", goal=GOAL),
    Level("trace, on the loop's CPU", loop=0, tracer=0, goal=GOAL),
    Level("trace, on the other CPU", loop=0, tracer=1, goal=GOAL),
    Level("trace --kernel", ("--kernel",), every=DEAR),
    Level("trace --stacks", ("--stacks",), every=DEAR),
)
DEAREST: Final = LEVELS[-2:]


def build(directory: str) -> str:
    """Compile the loop; its path."""
    loop = f"{directory}/trace_loop"
    source = Path(__file__).with_name("trace_loop.c")
    subprocess.run(["gcc", "-O2", "-Wall", "-o", loop, str(source)], check=True)
    os.chmod(directory, 0o755)
    return loop


def cpu_seconds(pid: int) -> float:
    """CPU time of a process until now: its POSIX clock (MAKE_PROCESS_CPUCLOCK, sched)."""
    return time.clock_gettime(~pid << 3 | 2)


@dataclass
class Box:
    """One sandbox with the loop inside. `made` is every connect it was told to make."""

    running: Running
    name: str
    made: int = 0

    def refuse(self, count: int, rate: int, cpu: int = ANY_CPU) -> tuple[float, float]:
        """CPU time a connect in ns, and connects a second by the wall clock."""
        self.running.tell(f"{count} {rate} {cpu}")
        each, wall, strange = self.running.line().split()
        if strange != "0":
            raise AssertionError(f"{strange} connects were not refused")
        self.made += count
        return float(each), count / float(wall) * 1e9

    @property
    def supervisor(self) -> int:
        """The pid of netns-run, which reads the kernel's ring whether somebody follows or not."""
        return self.running.process.pid


@contextmanager
def sandbox(directory: str, loop: str) -> Iterator[Box]:
    """A sandbox in which nothing but the loop runs."""
    name = f"bench-trace-{os.getpid()}"
    words = [loop, "connect", *REFUSED]
    with Running(
        "--name", name, cmd=words, cwd=directory, stdin=subprocess.PIPE, stderr=None
    ) as running:
        box = Box(running, name)
        box.refuse(1, 0)
        yield box


@dataclass
class Trace:
    """A `netns-debug trace --json` that follows. `totals` and `told` are there once it ended."""

    process: subprocess.Popen[str]
    totals: dict[str, int] = field(default_factory=dict)
    told: int = 0
    seconds: float = 0.0

    def end(self) -> None:
        """Interrupt it, as a person does, and read what it had to say."""
        self.process.send_signal(2)
        out, _ = self.process.communicate(timeout=60)
        lines: list[dict[str, Any]] = [json.loads(line) for line in out.splitlines()]
        self.totals = lines[-1]["totals"]
        self.told = sum(
            line.get("event", {}).get("event") == "connect.refused" for line in lines[:-1]
        )


@contextmanager
def following(box: Box, options: tuple[str, ...], cpu: int = ANY_CPU) -> Iterator[Trace]:
    """The trace, from when it follows until it has told its totals."""
    words = [NETNS_DEBUG, "trace", box.name, "--json", *options]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment()) as process:
        try:
            if cpu != ANY_CPU:
                os.sched_setaffinity(process.pid, {cpu})
            assert process.stdout is not None
            assert "began" in process.stdout.readline()
            trace = Trace(process)
            begun = time.monotonic()
            yield trace
            trace.seconds = time.monotonic() - begun
            trace.end()
        finally:
            if process.poll() is None:
                process.kill()


@dataclass
class Books:
    """Whether every count was exact, and what the traces printed."""

    made: int = 0
    printed: int = 0
    unprinted: int = 0
    wrong: list[str] = field(default_factory=list)

    def check(self, label: str, trace: Trace, made: int) -> None:
        """`made` connects while it followed: the bucket says how many of them it may print."""
        totals = trace.totals
        self.made += made
        self.printed += trace.told
        self.unprinted += totals["not_told"]
        most = EVENT_BURST + EVENT_RATE * (trace.seconds + 1) + (os.cpu_count() or 1)
        claims = {
            "refused is made": totals["refused"] == made,
            "told is printed": totals["told"] == trace.told,
            "told and not told are all": trace.told + totals["not_told"] == made,
            "the bucket's rate is kept": trace.told <= most,
            "no event was lost": totals["events_lost"] == 0,
        }
        self.wrong += [f"{label}: {claim}: {totals}" for claim, held in claims.items() if not held]

    def lines(self) -> list[tuple[str, bool]]:
        """What the traces told of all that they followed."""
        exact = f"{self.printed} printed + {self.unprinted} told as not printed of {self.made}"
        return [(f"counts while traced: {exact}", not self.wrong and self.printed > 0)] + [
            (f"  {text}", False) for text in self.wrong
        ]


def look(box: Box, books: Books, level: Level, count: int) -> tuple[float, float]:
    """So many connects at RATE while somebody looks that way; as `Box.refuse`."""
    before = box.made
    with following(box, level.options, level.tracer) as trace:
        answer = box.refuse(count, RATE, level.loop)
        time.sleep(SETTLING)
    books.check(level.label, trace, box.made - before)
    return answer


def paced(box: Box, books: Books, rounds: int) -> list[tuple[str, bool]]:
    """Each level at RATE beside nobody looking, measured twice a round: what differs is noise."""
    taken: dict[Level, list[float]] = {level: [] for level in LEVELS}
    noise: list[float] = []
    alone: list[float] = []
    for number in range(rounds):
        due = [level for level in LEVELS if number % level.every == 0]
        random.shuffle(due)
        base = [box.refuse(SLICE, RATE)[0]]
        each = {level: look(box, books, level, SLICE)[0] for level in due}
        base.append(box.refuse(SLICE, RATE)[0])
        random.shuffle(base)
        alone.append(base[0])
        noise.append(base[1] / base[0])
        for level, cost in each.items():
            taken[level].append(2 * cost / sum(base))
    lines = []
    for level, ratios in taken.items():
        ratio = median(ratios)
        goal = "no goal" if level.goal is None else f"goal {level.goal:.2f}"
        lines.append(
            (
                f"a refused connect with {level.label} / with nobody looking: {ratio:.2f} ({goal})",
                level.goal is None or ratio < level.goal,
            )
        )
    alone_ns = f"{median(alone):.0f} ns"
    lines.append((f"nobody looking / nobody looking: {median(noise):.2f} ({alone_ns})", True))
    return lines


def long(box: Box, books: Books) -> tuple[str, bool]:
    """The rate kept up for seconds."""
    _, rate = look(box, books, LEVELS[0], LONG)
    text = f"connects a second that were refused and traced, {LONG} in a row: {rate:.0f}"
    return f"{text} (goal {RATE})", rate >= 0.99 * RATE


def flat_out(box: Box, rounds: int) -> tuple[str, bool]:
    """As fast as it goes, with all that the trace and the supervisor do on the loop's own CPU.

    CPU time of the three, so that nothing that waits is taken for something that works.
    """
    costs: dict[bool, list[float]] = {False: [], True: []}
    rates = []
    for _ in range(rounds):
        for is_traced, spent in costs.items():
            pids = [box.supervisor]
            with following(box, (), 0) if is_traced else nullcontext() as trace:
                pids += [trace.process.pid] if trace is not None else []
                before = sum(map(cpu_seconds, pids))
                each, rate = box.refuse(FLOOD, 0, 0)
                others = sum(map(cpu_seconds, pids)) - before
            spent.append(each + others / FLOOD * 1e9)
            rates.append(rate)
    ratio = median(b / a for a, b in zip(costs[False], costs[True], strict=True))
    return (
        f"flat out ({median(rates) / 1e6:.1f} million a second), everything on one CPU:"
        f" {ratio:.2f} (goal {GOAL:.2f})",
        ratio < GOAL,
    )


def outside(box: Box, loop: str, rounds: int) -> list[tuple[str, bool]]:
    """What a process of the host pays while somebody looks, for a system call and for a packet."""
    lines = []
    for what, label in (("call", "system call"), ("datagram", "datagram on loopback")):
        words = [loop, what, "127.0.0.1", "0"]
        with subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        ) as host:
            costs = {level: _outside(box, host, level, rounds) for level in (LEVELS[0], *DEAREST)}
        told = ", ".join(f"{level.label} {extra:+.0f} ns" for level, (extra, _) in costs.items())
        alone = median(ns for _, ns in costs.values())
        lines.append((f"outside the sandbox, a {label} ({alone:.0f} ns): {told}", True))
    return lines


def _outside(
    box: Box, host: subprocess.Popen[str], level: Level, rounds: int
) -> tuple[float, float]:
    """What it costs more, and what it costs with nobody looking, in ns."""
    assert host.stdin is not None
    assert host.stdout is not None
    extra, alone = [], []
    for _ in range(rounds):
        each = []
        for is_traced in (False, True):
            with following(box, level.options) if is_traced else nullcontext():
                host.stdin.write(f"{SLICE} 0 {ANY_CPU}\n")
                taken, _, strange = host.stdout.readline().split()
            if strange != "0":
                raise AssertionError(f"{strange} went wrong outside")
            each.append(float(taken))
        alone.append(each[0])
        extra.append(each[1] - each[0])
    return median(extra), median(alone)


def main() -> int:
    """Print every line; 1 when one of them misses its goal."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 25
    books = Books()
    with tempfile.TemporaryDirectory(prefix="netns-bench-", dir="/var/tmp") as directory:
        os.chmod(directory, 0o755)
        loop = build(directory)
        with sandbox(directory, loop) as box:
            lines = [long(box, books), *paced(box, books, rounds)]
            few = max(3, rounds // 3)
            lines += [flat_out(box, few), *outside(box, loop, few)]
            box.running.tell("end")
            ended = box.running.wait().event("sandbox.exited")
    lines += books.lines()
    exact = ended["count"] == box.made
    lines.append((f"counted when it ended: {ended['count']} of {box.made}", exact))
    for text, reached in lines:
        sys.stdout.write(f"{'ok  ' if reached else 'MISS'} {text}\n")
    return 0 if all(reached for _, reached in lines) else 1


if __name__ == "__main__":
    sys.exit(main())

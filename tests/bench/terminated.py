"""`python -m tests.bench.terminated [--quick] [--only NAME,...]`: terminated, next to mitmproxy.

The namespaces are those of tests.bench.tunnel. Client and server share one CPU and the proxy has
the other (a direct connection: the server), so what a proxy costs is what is measured. Rounds are
paired: each measures everyone once, one load after the other, and ratios are medians over the
rounds. Ends with 1 where an aim of issue 4 was missed; a full run is over within six minutes, a
quick one within one.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from tests.bench import terminated_report
from tests.bench.terminated_proxies import CA_FILE, Contender, contenders
from tests.bench.terminated_wire import PLAIN, PORT, SECRET
from tests.bench.tunnel_proxies import SERVER
from tests.bench.tunnel_world import FILES, alone, cpu_of, inside, make_places, pin, running

if TYPE_CHECKING:
    from tests.bench.tunnel_report import Results

LOADS: Final = (
    *(("h1", "h1", PLAIN), ("h1-rate", "h1-rate", PLAIN), ("h1-rate", "h1-rate secret", SECRET)),
    *(("h2", "h2", PLAIN), ("h2-rate", "h2-rate", PLAIN)),
    *(("websocket", "websocket", PLAIN), ("websocket", "websocket secret", SECRET)),
    *(("upload", "upload", PLAIN), ("upload", "upload secret", SECRET)),
)
SILENCE: Final = 120.0
"""Seconds past its own that a load may take; an upload's time is its own."""
LEAVES: Final = 50


@dataclass(frozen=True, slots=True)
class Plan:
    """`seconds` of each load but uploads, of `mebibytes` each; `budget`: seconds for all rounds."""

    rounds: int
    seconds: float
    mebibytes: int
    budget: float


FULL: Final = Plan(rounds=5, seconds=1.5, mebibytes=1024, budget=330)
QUICK: Final = Plan(rounds=1, seconds=0.5, mebibytes=64, budget=50)


class LoadFailed(Exception):
    """A load did not get through: its last words."""


def _load(contender: Contender, kind: str, host: str, amount: float) -> dict[str, float]:
    module = (sys.executable, "-m", "tests.bench.terminated_load")
    address, port = contender.where
    direct = "direct" if contender.is_direct else ""
    words = (*module, kind, address, str(port), direct, host, str(amount))
    first = str(min(os.sched_getaffinity(0)))
    command = ("taskset", "-c", first, *inside("client", *words))
    try:
        done = subprocess.run(command, capture_output=True, timeout=SILENCE, text=True)
    except subprocess.TimeoutExpired as error:
        raise LoadFailed(f"{kind} did not end") from error
    if done.returncode:
        raise LoadFailed(f"{kind} {host}: {done.stderr.strip().rpartition(chr(10))[2]}")
    values: dict[str, float] = json.loads(done.stdout)
    return values


def _measure(
    contender: Contender, pids: list[int], server: list[int], plan: Plan
) -> dict[str, Any]:
    """One round of one contender, by column; what failed is told and left out."""
    cpus = sorted(os.sched_getaffinity(0))
    pin(server, cpus[:1] if pids else cpus[-1:])
    pin(pids, cpus[-1:])
    found = {}
    for kind, column, host in LOADS:
        before = cpu_of(pids)
        amount = plan.mebibytes if kind == "upload" else plan.seconds
        try:
            values = _load(contender, kind, host, amount)
        except LoadFailed as error:
            print(f"{contender.name}: {error}", flush=True)
            continue
        if "rate" in values:
            found[column] = values["rate"]
        else:
            found |= {f"{column} {name}": value for name, value in values.items()}
        if column == "h1-rate" and pids:
            found["cpu"] = (cpu_of(pids) - before) / (values["rate"] * plan.seconds) * 1e6
    return found


def mint(count: int) -> terminated_report.Leaf:
    """Milliseconds that a name nobody asked for before takes."""
    from netns_runtime.proxy.ca import Authority

    authority = Authority("bench")
    times = []
    for number in range(count):
        before = time.perf_counter()
        authority.context_for(f"host-{number}.bench.test", "h2")
        times.append((time.perf_counter() - before) * 1e3)
    times.sort()
    return terminated_report.Leaf(times[count // 2], times[count * 99 // 100])


def _all_rounds(plan: Plan, found: list[Contender], results: Results) -> None:
    begun = time.monotonic()
    module = (sys.executable, "-m", "tests.bench.terminated_server")
    serve = (*module, str(FILES / CA_FILE), "0.0.0.0")
    with ExitStack() as stack:
        server = stack.enter_context(running("server", [(serve, "0.0.0.0", PORT)]))
        pids: dict[Contender, list[int]] = {}
        for contender in found:
            try:
                pids[contender] = stack.enter_context(running("proxy", contender.commands))
            except OSError as error:
                print(f"{contender.name}: not measured: {error}", flush=True)
        longest = 0.0
        for number in range(plan.rounds):
            started = time.monotonic()
            if started - begun + longest > plan.budget:
                print(f"{number} rounds of {plan.rounds}: time is up")
                break
            for contender, its in pids.items():
                for column, value in _measure(contender, its, server, plan).items():
                    results[contender.name].setdefault(column, []).append(value)
            longest = max(longest, time.monotonic() - started)
        print(f"all: {time.monotonic() - begun:.0f} s")


def _name_hosts() -> None:
    """Both names are the server's, for everybody in these namespaces."""
    hosts = FILES / "hosts"
    hosts.write_text(f"127.0.0.1 localhost\n{SERVER} {PLAIN} {SECRET}\n")
    subprocess.run(("mount", "--bind", str(hosts), "/etc/hosts"), check=True)


def measure(plan: Plan, only: list[str]) -> int:
    """Measure and print, in namespaces made by `alone`. 1 where an aim was missed."""
    make_places()
    _name_hosts()
    found, missing = contenders(FILES)
    if only:
        found = [contender for contender in found if contender.name in only]
    if missing:
        print(f"not installed, so not compared: {', '.join(missing)}")
    results: dict[str, dict[str, list[float]]] = {contender.name: {} for contender in found}
    _all_rounds(plan, found, results)
    for line in (*terminated_report.table(results), ""):
        print(line)
    missed = 0
    for line, is_missed in terminated_report.judged(results, mint(LEAVES)):
        print(line)
        missed += is_missed
    return 1 if missed else 0


def main(arguments: list[str]) -> Any:
    """Parse, and run `measure` where nothing of it can outlive us."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round, small uploads")
    parser.add_argument("--only", default="", help="names, comma-separated")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if not options.inside:
        return alone("tests.bench.terminated", "--inside", *arguments)
    only = [name for name in options.only.split(",") if name]
    return measure(QUICK if options.quick else FULL, only)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

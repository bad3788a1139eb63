"""`python -m tests.bench.tunnel [--quick] [--only NAME,...]`: our proxy next to others, in one run.

Client, proxy and server have a namespace each, without a way out; the client has a link to the
server too, for a direct connection. Whichever of HAProxy, squid, redsocks+squid and mitmproxy is
installed runs beside ours. Rounds are paired: each measures everyone once, one load after the
other, and ratios are medians over the rounds. Latencies are measured across two CPUs: client and
server on one, the proxy (or the server, for a direct connection) on another; the scheduler's own
choice varies more from run to run than proxies do. HAProxy relays TCP to the one server: no
CONNECT, no policy, no audit. Ends with 1 where an aim of issue 3 was missed; a full run is over
within six minutes, a quick one within one.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, Final

from tests.bench import tunnel_report
from tests.bench.tunnel_load import SERVER_PORT
from tests.bench.tunnel_proxies import Contender, contenders
from tests.bench.tunnel_world import (
    FILES,
    alone,
    cpu_of,
    inside,
    make_places,
    pin,
    rss_of,
    running,
)

if TYPE_CHECKING:
    from tests.bench.tunnel_report import Results

LOADS: Final = ("setup", "short", "echo", "bulk")
ACROSS: Final = frozenset({"setup", "echo"})
SILENCE: Final = 30.0
"""Seconds past its own that a load may take."""


@dataclass(frozen=True, slots=True)
class Plan:
    """`seconds` of each load, `flows` held idle; no round begins that `budget` seconds, from the
    start, would not see the end of."""

    rounds: int
    seconds: float
    flows: int
    budget: float


FULL: Final = Plan(rounds=5, seconds=1.0, flows=5000, budget=330)
QUICK: Final = Plan(rounds=1, seconds=0.5, flows=500, budget=50)


class LoadFailed(Exception):
    """A load did not get through: its last words."""


def _command(contender: Contender, kind: str, amount: float) -> tuple[str, ...]:
    host, port = contender.where
    module = (sys.executable, "-m", "tests.bench.tunnel_load")
    return inside("client", *module, kind, host, str(port), contender.target, str(amount))


def _load(contender: Contender, kind: str, seconds: float) -> dict[str, float]:
    command = _command(contender, kind, seconds)
    if kind in ACROSS:
        command = ("taskset", "-c", str(min(os.sched_getaffinity(0))), *command)
    try:
        done = subprocess.run(command, capture_output=True, timeout=seconds + SILENCE, text=True)
    except subprocess.TimeoutExpired as error:
        raise LoadFailed(f"{kind} did not end") from error
    if done.returncode:
        raise LoadFailed(f"{kind}: {done.stderr.strip().rpartition(chr(10))[2]}")
    values: dict[str, float] = json.loads(done.stdout)
    return values


def _measure(
    contender: Contender, pids: list[int], server: list[int], seconds: float
) -> dict[str, float]:
    """One round of one contender, by column."""
    cpus = sorted(os.sched_getaffinity(0))
    found = {}
    for kind in LOADS:
        if kind in ACROSS:
            pin(server, cpus[:1] if pids else cpus[-1:])
            pin(pids, cpus[-1:])
        else:
            pin((*server, *pids), cpus)
        before = cpu_of(pids)
        values = _load(contender, kind, seconds)
        used = cpu_of(pids) - before
        for name in ("p50", "p99", "rate"):
            if name in values:
                found[f"{kind} {name}"] = values[name]
        if pids and "amount" in values:
            found[f"{kind} cpu"] = used / values["amount"] * (1e6 if kind == "short" else 1)
    return found


def _idle(contender: Contender, flows: int) -> float:
    """KiB resident for each idle flow, in processes started for that."""

    def told(stream: IO[str]) -> None:
        if not stream.readline():
            raise LoadFailed("idle flows: a connection failed")

    with ExitStack() as stack:
        pids = stack.enter_context(running("proxy", contender.commands))
        command = _command(contender, "idle", flows)
        pipe, nobody = subprocess.PIPE, subprocess.DEVNULL
        load = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=nobody, text=True)
        assert load.stdin is not None
        assert load.stdout is not None
        with load:
            told(load.stdout)
            time.sleep(0.2)
            before = rss_of(pids)
            load.stdin.write("\n")
            load.stdin.flush()
            told(load.stdout)
            time.sleep(0.5)
            grown = rss_of(pids) - before
            load.communicate()
    return grown / flows / 1024


def _all_rounds(plan: Plan, found: list[Contender], results: Results) -> None:
    begun = time.monotonic()
    serve = (sys.executable, "-m", "tests.bench.tunnel_load", "server", "0.0.0.0")
    live = dict.fromkeys(found)

    def without(contender: Contender, error: Exception) -> None:
        print(f"{contender.name}: not measured further: {error}", flush=True)
        live.pop(contender, None)

    with ExitStack() as stack:
        server = stack.enter_context(running("server", [(serve, "0.0.0.0", SERVER_PORT)]))
        for contender in list(live):
            if contender.commands:
                try:
                    flows = min(plan.flows, contender.most_flows)
                    results[contender.name]["idle"] = [_idle(contender, flows)]
                    if flows < plan.flows:
                        print(f"{contender.name}: {flows} idle flows, no more descriptors")
                except (LoadFailed, OSError) as error:
                    print(f"{contender.name}: {error}", flush=True)
        print(f"idle flows: {plan.flows} each, {time.monotonic() - begun:.0f} s", flush=True)
        pids: dict[Contender, list[int]] = {}
        for contender in list(live):
            try:
                pids[contender] = stack.enter_context(running("proxy", contender.commands))
            except OSError as error:
                without(contender, error)
        longest = 0.0
        for number in range(plan.rounds):
            started = time.monotonic()
            if started - begun + longest > plan.budget:
                print(f"{number} rounds of {plan.rounds}: time is up")
                break
            for contender in list(live):
                try:
                    values = _measure(contender, pids[contender], server, plan.seconds)
                except (LoadFailed, OSError) as error:
                    without(contender, error)
                    continue
                for column, value in values.items():
                    results[contender.name].setdefault(column, []).append(value)
            longest = max(longest, time.monotonic() - started)
        print(f"all: {time.monotonic() - begun:.0f} s")


def measure(plan: Plan, only: list[str]) -> int:
    """Measure and print, in namespaces made by `alone`. 1 where an aim was missed."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    make_places()
    found, missing = contenders(FILES)
    if only:
        found = [contender for contender in found if contender.name in only]
    if missing:
        print(f"not installed, so not measured: {', '.join(missing)}")
    results: dict[str, dict[str, list[float]]] = {contender.name: {} for contender in found}
    _all_rounds(plan, found, results)
    for line in (*tunnel_report.table(results), "", *tunnel_report.ratios(results), ""):
        print(line)
    missed = 0
    for line, is_missed in tunnel_report.judged(results):
        print(line)
        missed += is_missed
    return 1 if missed else 0


def main(arguments: list[str]) -> Any:
    """Parse, and run `measure` where nothing of it can outlive us."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round, fewer idle flows")
    parser.add_argument("--only", default="", help="names, comma-separated")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if not options.inside:
        return alone("tests.bench.tunnel", "--inside", *arguments)
    only = [name for name in options.only.split(",") if name]
    return measure(QUICK if options.quick else FULL, only)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""How long `netns-debug why` takes beside a bare `netns-debug --version`, in pairs, as medians.

Run by `scripts/bench why`, as root. Every round asks each once, in turn: of a running sandbox, of
the audit file that it wrote, and of a long one, which is told and not judged, since reading it is
what takes the time. Without the launcher, which would add the same to both. Ends with 1 if a ratio
is above its mark. Mark: issue 5, "Speed".
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from tests.support.run import NETNS_DEBUG, Running, environment

ROUNDS: Final = 31
MARK: Final = 1.5
LONG: Final = 100_000
"""Events of the long audit file."""
DEBUG: Final = (NETNS_DEBUG,)
HOST: Final = "203.0.113.5:81"
CMD: Final = """
import socket, sys
print(socket.socket().connect_ex(("203.0.113.5", 81)), flush=True)
sys.stdin.readline()
"""
BASE: Final = "netns-debug --version"
BIG: Final = f"of an audit file with {LONG} events (no goal)"


def seconds(words: list[str], env: dict[str, str]) -> float:
    """How long it took; CalledProcessError where it did not end well."""
    start = time.perf_counter()
    subprocess.run(words, check=True, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> int:
    """Print every line; 1 when one of them misses its mark."""
    env = environment()
    taken: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="netns-bench-", dir="/var/tmp") as directory:
        name = f"bench-why-{os.getpid()}"
        small, big = Path(directory, "audit.jsonl"), Path(directory, "long.jsonl")
        cmd = ["/usr/bin/python3", "-c", CMD]
        with Running(
            *("--name", name, "--preset", "slack", "--preset", "github"),
            cmd=cmd,
            cwd="/",
            stdin=subprocess.PIPE,
        ) as running:
            running.line()
            # Until the supervisor has told it, there is no last attempt to explain.
            while not any(event["event"] == "connect.refused" for event in running.audit()):
                time.sleep(0.05)
            lines = [json.dumps(event) for event in running.audit()]
            small.write_text("\n".join(lines) + "\n")
            refused = [line for line in lines if "connect.refused" in line]
            big.write_text("\n".join([*lines, *refused * (LONG // len(refused))]) + "\n")
            commands = {
                BASE: [*DEBUG, "--version"],
                "of a running sandbox": [*DEBUG, "why", HOST, "--sandbox", name],
                "of a running sandbox, about an allowed name": [
                    *(*DEBUG, "why", "slack.com", "--sandbox", name)
                ],
                "of an audit file": [*DEBUG, "why", HOST, "--from", str(small)],
                BIG: [*DEBUG, "why", HOST, "--from", str(big)],
            }
            taken = {label: [] for label in commands}
            for words in commands.values():
                seconds(words, env)
            for number in range(ROUNDS):
                for label, words in commands.items():
                    if label != BIG or number < 3:
                        taken[label].append(seconds(words, env))
    missed = False
    for label, times in taken.items():
        ratio = statistics.median(
            ours / base for ours, base in zip(times, taken[BASE], strict=False)
        )
        is_good = label in (BASE, BIG) or ratio < MARK
        missed |= not is_good
        told = f"{statistics.median(times) * 1000:8.1f} ms  {ratio:6.2f}"
        print(
            f"{'ok  ' if is_good else 'MISS'} {told}  {label if label == BASE else 'why, ' + label}"
        )
    print(f"goal: why in under {MARK} times {BASE}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())

"""What a launch costs: `netns-run -- true` next to importing its libraries, in pairs, as medians.

Run by `scripts/bench launch`. Every round runs each command once, in turn, so that what else the
machine does meets all of them alike. Ends with 1 if the ratio is above its mark.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import time

from tests.support.lab import CHECKOUT
from tests.support.run import environment

ROUNDS = 21
MARK = 1.6
"""Issue 2: `netns-run -- true` at most this many times the imports."""

IMPORTS = [str(CHECKOUT / ".venv/bin/python"), "-I", "-c", "import trio, pyroute2, cryptography"]
OURS = "netns-run -- true"
BASE = "import trio, pyroute2, cryptography"

OTHERS = {
    "bwrap": "bwrap --ro-bind / / --dev /dev --proc /proc --unshare-all true",
    "firejail": "firejail --quiet --noprofile --net=none true",
    "unshare": "unshare --net --mount --pid --fork true",
}
# Medians measured on a machine of this kind, where the program is not installed (issue 2).
TOLD = {"runc": 18.0, "codex": 29.0, "firejail": 45.0, "podman": 125.0, "sandbox-runtime": 290.0}


def milliseconds(command: list[str], env: dict[str, str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, env=env, stdin=subprocess.DEVNULL)
    return (time.perf_counter() - start) * 1000


def main() -> int:
    commands = {
        "true": ["true"],
        **{name: line.split() for name, line in OTHERS.items() if shutil.which(name)},
        BASE: IMPORTS,
        OURS: [str(CHECKOUT / "netns-run"), "--", "true"],
    }
    env = environment()
    for command in commands.values():
        milliseconds(command, env)
    taken: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(ROUNDS):
        for name, command in commands.items():
            taken[name].append(milliseconds(command, env))
    medians = {name: statistics.median(times) for name, times in taken.items()}
    told = {name: value for name, value in TOLD.items() if name not in medians}
    for name, value in sorted({**medians, **told}.items(), key=lambda item: item[1]):
        note = "  (measured before, on a machine of this kind)" if name in told else ""
        print(f"{value:8.1f} ms  {name}{note}")
    pairs = zip(taken[OURS], taken[BASE], strict=True)
    ratio = statistics.median(ours / base for ours, base in pairs)
    good = ratio <= MARK
    print(f"launch over imports: {ratio:.2f} (at most {MARK}) {'ok' if good else 'MISSED'}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())

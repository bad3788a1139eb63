"""Runs in a guest: writes what its kernel has as JSON, for the table. Argument: the file.

Nothing here decides anything; what cannot be found out is missing from the answer.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

_CGROUPS = {"cgroup": "v1", "cgroup2": "v2"}


def _first_line(words: list[str]) -> str:
    with contextlib.suppress(OSError):
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return done.stdout.strip().partition("\n")[0]
    return ""


def _doctor() -> dict[str, bool]:
    words = ["./netns-debug", "doctor", "--json"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    found: dict[str, bool] = {}
    with contextlib.suppress(ValueError, KeyError, TypeError):
        answer = json.loads(done.stdout)
        checks = answer["checks"] if isinstance(answer, dict) else answer
        for check in checks:
            found[check["feature"]] = bool(check.get("is_present", check.get("present")))
    return found


def _has_module(name: str) -> bool:
    words = ["modprobe", name]
    return subprocess.run(words, capture_output=True, check=False).returncode == 0


def facts() -> dict[str, object]:
    mounts = [line.split()[2] for line in Path("/proc/mounts").read_text().splitlines()]
    kinds = {kind for kind in mounts if kind in ("cgroup", "cgroup2")}
    headers = sorted(p.name for p in Path("/usr/src").glob("linux-headers-*-common"))
    return {
        "release": os.uname().release,
        "cgroups": "hybrid" if len(kinds) > 1 else _CGROUPS.get("".join(kinds), "none"),
        "kprobes": Path("/sys/kernel/tracing/kprobe_events").exists(),
        "btf": Path("/sys/kernel/btf/vmlinux").exists(),
        "ipv6": Path("/proc/net/if_inet6").exists(),
        "nft_tproxy": _has_module("nft_tproxy"),
        "netkit": _has_module("netkit") or Path("/sys/module/netkit").exists(),
        "apparmor": sorted(p.name for p in Path("/proc/sys/kernel").glob("*apparmor*")),
        "headers": headers[-1].removeprefix("linux-headers-") if headers else "",
        "python": sys.version.split()[0],
        "nft": _first_line(["nft", "--version"]),
        "doctor": _doctor(),
    }


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(facts(), indent=1), encoding="utf-8")

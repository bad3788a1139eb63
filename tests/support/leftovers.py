"""What a run leaves on the machine: a snapshot before, a comparison after.

`snapshot()` looks at network namespaces, the host's links and nft tables, BPF objects, our
cgroups, our state files and our processes. The set of programs and maps that the runtime pins once
for all sandboxes is allowed. `wait_for_nothing` gives the kernel two seconds to let go, then
returns what is still there; it never raises for what it finds.
"""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import Final

from netns_runtime.layout import PREFIX, RUN_DIR
from tests.support import kernel_ids

LET_GO_SECONDS: Final = 2.0
# Programs that systemd loads for its units come and go on their own.
FOREIGN_PREFIXES: Final = ("sd_",)
OURS: Final = (b"netns_runtime", b"netns-run", b"netns-debug")
# What only a kill leaves, and the next run or `netns-debug gc` reclaims.
RECLAIMABLE: Final = frozenset({"cgroup", "state"})

Snapshot = dict[str, set[str]]


def _links_to(pattern: str) -> set[str]:
    found = set()
    for path in Path("/proc").glob(pattern):
        try:
            target = os.readlink(path)
        except OSError:
            continue
        if target.startswith("net:["):
            found.add(target)
    return found


def namespaces() -> set[str]:
    """Network namespaces that a process or a descriptor holds, and the named ones."""
    named = {f"name {p.name}" for p in Path("/run/netns").glob("*")}
    return _links_to("[0-9]*/ns/net") | _links_to("[0-9]*/fd/*") | named


def links() -> set[str]:
    return {p.name for p in Path("/sys/class/net").iterdir()}


def tables() -> set[str]:
    listed = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=False)
    return set(listed.stdout.split("\n")) - {""}


def bpf_objects() -> set[str]:
    shared = kernel_ids.pinned_ids(PREFIX)
    found = set()
    for kind in kernel_ids.NEXT_ID:
        for number in kernel_ids.ids(kind):
            name = "" if number in shared else kernel_ids.name_of(kind, number)
            if number not in shared and not name.startswith(FOREIGN_PREFIXES):
                found.add(f"{kind} {number} {name}".rstrip())
    return found


def cgroups() -> set[str]:
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    roots = {Path(words[1]) for words in mounts if words[2] in ("cgroup", "cgroup2")}
    tops = [top for root in roots for top in root.glob(f"{PREFIX}*")]
    # os.walk, unlike Path.rglob, does not mind what vanishes meanwhile.
    return {place for top in tops for place, _, _ in os.walk(top)} - {
        str(root / PREFIX) for root in roots
    }


def state_files() -> set[str]:
    """Files that name a sandbox; locks and the shared pins stay."""
    kept = (".lock",)
    found = {f"{place}/{name}" for place, _, names in os.walk(RUN_DIR) for name in names}
    return {path for path in found if not path.endswith(kept)}


def processes() -> set[str]:
    found = set()
    for place in Path("/proc").glob("[0-9]*"):
        try:
            words = (place / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if any(ours in word for ours in OURS for word in words[:4]):
            found.add(f"{place.name} {b' '.join(words).decode('utf-8', 'replace')[:120]}")
    return found


LOOKS: Final = {
    "namespace": namespaces,
    "link": links,
    "table": tables,
    "bpf": bpf_objects,
    "cgroup": cgroups,
    "state": state_files,
    "process": processes,
}


def snapshot() -> Snapshot:
    return {kind: look() for kind, look in LOOKS.items()}


def left(before: Snapshot, *, killed: bool = False) -> list[str]:
    """What is there now and was not before, one line each."""
    kinds = [kind for kind in LOOKS if not (killed and kind in RECLAIMABLE)]
    return [f"{kind}: {what}" for kind in kinds for what in sorted(LOOKS[kind]() - before[kind])]


def wait_for_nothing(before: Snapshot, *, killed: bool = False) -> list[str]:
    """Look until nothing is left or `LET_GO_SECONDS` have passed."""
    deadline = time.monotonic() + LET_GO_SECONDS
    while (found := left(before, killed=killed)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found

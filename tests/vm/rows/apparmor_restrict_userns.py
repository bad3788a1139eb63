"""Starts a command under an AppArmor profile that allows all but user namespaces.

Children inherit the profile. Ubuntu's own sysctl is set too where the kernel has it. Arguments: the
command. Ends as the command does, or with apparmor_parser's complaint.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

PROFILE: Final = "netns-runtime-no-userns"
UBUNTU_SYSCTL: Final = Path("/proc/sys/kernel/apparmor_restrict_unprivileged_userns")
_RULES: Final = (
    *("capability", "network", "mount", "remount", "umount", "pivot_root", "ptrace", "signal"),
    *(
        "unix",
        "dbus",
        "mqueue",
        "io_uring",
        "change_profile",
        "change_profile -> unconfined",
        "file rwlkm /{**,}",
        "/** pix",
    ),
    "audit deny userns",
)
_TEXT: Final = (
    "abi <abi/4.0>,\n"
    f"profile {PROFILE} flags=(attach_disconnected,mediate_deleted) {{\n"
    + "".join(f"  {rule},\n" for rule in _RULES)
    + "}\n"
)
# Ubuntu confines bubblewrap itself; Debian ships the profile and does not load it.
BWRAP_PROFILE: Final = Path("/usr/share/apparmor/extra-profiles/bwrap-userns-restrict")


def load_profile(path: Path) -> None:
    subprocess.run(["apparmor_parser", "--replace", "--skip-cache", path], check=True)


def unload_profile(path: Path) -> None:
    subprocess.run(["apparmor_parser", "--remove", path], check=True)


def main() -> None:
    with tempfile.NamedTemporaryFile("w", encoding="ascii") as file:
        file.write(_TEXT)
        file.flush()
        load_profile(Path(file.name))
    if UBUNTU_SYSCTL.exists():
        UBUNTU_SYSCTL.write_text("1", encoding="ascii")
    Path("/proc/self/attr/exec").write_text(f"exec {PROFILE}", encoding="ascii")
    os.execv(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    main()

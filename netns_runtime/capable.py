"""Whether this process may set up a sandbox at all: root, with the capabilities that takes."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from netns_runtime.errors import StepError

# include/uapi/linux/capability.h
_NEEDED: Final = {"CAP_NET_ADMIN": 12, "CAP_SYS_ADMIN": 21}


def check_capable(status: Path = Path("/proc/self/status")) -> None:
    """Raise StepError unless effective uid and capabilities suffice."""
    if os.geteuid() != 0:
        raise StepError("netns-run needs root", remedy="run sudo netns-run …")
    effective = re.search(r"(?m)^CapEff:\s*([0-9a-f]+)", status.read_text(encoding="ascii"))
    held = int(effective[1], 16) if effective is not None else 0
    missing = [name for name, bit in _NEEDED.items() if not held >> bit & 1]
    if missing:
        raise StepError(
            f"root lacks {' and '.join(missing)} here, as inside a sandbox or a container",
            remedy="run netns-run outside of it, or give the container those capabilities",
        )

"""Why there is no probe here, as an error that names what is missing.

`netns-run` with `--probe auto` then lets the gateway's nft rules enforce and count alone; with
`--probe bpf` it ends with this.
"""

from __future__ import annotations

from netns_runtime.errors import NetnsError


class ProbeUnavailable(NetnsError):
    """What is missing, and the remedy. `where`: the instruction a verifier stopped at, told in a
    second line. `details`: all that verifier or compiler said, for `-v`.
    """

    def __init__(self, what: str, *, remedy: str = "", where: str = "", details: str = "") -> None:
        super().__init__(what, remedy=remedy)
        self.where = " ".join(where.split())
        self.details = details

    def __str__(self) -> str:
        line = super().__str__()
        return f"{line}\n  at {self.where}" if self.where else line

"""Why there is no probe here, as an error that names what is missing.

`netns-run` with `--probe auto` then lets the gateway's nft rules enforce and count alone; with
`--probe bpf` it ends with this.
"""

from __future__ import annotations

from netns_runtime.errors import NetnsError


class ProbeUnavailable(NetnsError):
    """One line and its remedy. `details` is the whole text of the verifier or compiler, for `-v`."""

    def __init__(self, what: str, *, remedy: str = "", details: str = "") -> None:
        super().__init__(what, remedy=remedy)
        self.details = details

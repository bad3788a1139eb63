"""What a capture took and what it did not, as a value and in words. Pure."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from netns_runtime.debug.text import shown, size_of


@dataclass(slots=True)
class Summary:
    """What a capture took. `dropped` are packets that the kernel had no room for, `open_before`
    terminated flows whose keys nobody has, `lost` messages that the proxy could not send us."""

    sandbox: str
    file: str
    packets: int = 0
    bytes: int = 0
    dropped: int = 0
    keys: int = 0
    refused: int = 0
    open_before: int = 0
    lost: int = 0
    events_lost: int = 0
    has_authority: bool = True
    with_secrets: bool = False
    upstream_packets: int = 0
    ended_by: str = ""

    def fields(self) -> dict[str, Any]:
        """For --json."""
        return asdict(self)

    def lines(self, name: str) -> list[str]:
        """For a person: what is in the file, then what is not."""
        said = [f"{shown(name)}: {self.packets} packets, {size_of(self.bytes)}, {self.ended_by}"]
        if not self.has_authority:
            said.append("no flow of this sandbox is terminated: TLS stays ciphertext")
        if self.open_before:
            flows = "1 flow" if self.open_before == 1 else f"{self.open_before} flows"
            said.append(f"{flows} began before the capture: their TLS stays ciphertext")
        if self.dropped:
            said.append(f"{self.dropped} packets were dropped: they came faster than they go")
        if self.lost:
            said.append(f"{self.lost} messages of the proxy were lost: some TLS stays ciphertext")
        if self.events_lost:
            said.append(f"{self.events_lost} refusals came too fast to be written")
        return said

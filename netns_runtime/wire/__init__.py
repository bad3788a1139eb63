"""Sans-io parsers of what clients and upstreams send: bytes in, values out, nothing here awaits.

One contract for all: `feed` appends, `next` gives a value or NEED_DATA, a malformed peer raises
`ProtocolError` and nothing else, and nothing is buffered beyond a named limit.
"""

from __future__ import annotations

import enum
from typing import Final


class NeedData(enum.Enum):
    """The type of NEED_DATA."""

    NEED_DATA = enum.auto()


NEED_DATA: Final = NeedData.NEED_DATA


class ProtocolError(Exception):
    """The peer broke the protocol. `status` is the HTTP status that tells it so; `remedy` what in
    the policy would take it, if something would."""

    def __init__(self, what: str, *, status: int = 400, remedy: str = "") -> None:
        super().__init__(what)
        self.status = status
        self.remedy = remedy

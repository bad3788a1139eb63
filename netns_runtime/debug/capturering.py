"""Packets of one namespace's interfaces, out of a ring that the kernel fills (packet(7)).

`Ring` opens an AF_PACKET socket on the calling thread, so on one that is inside the namespace; from
then on it works from anywhere. `read` gives what has come since and never waits; what the kernel
had no room for it counts (`statistics`). Raises StepError where the kernel has no such ring.

Theory of operation: PACKET_RX_RING of version 3. The kernel fills blocks of BLOCK bytes and hands
one over when it is full, or RETIRE milliseconds after its first packet; we copy what is in it and
hand it back. A flood therefore costs no system call for each packet, and what comes while we are
busy waits in the ring.
"""

from __future__ import annotations

import ctypes
import mmap
import socket
import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from netns_runtime.debug.pcapng import INBOUND, OUTBOUND, SNAPLEN
from netns_runtime.errors import step_error

if TYPE_CHECKING:
    from collections.abc import Iterator

BLOCK: Final = 1 << 20
BLOCKS: Final = 32
RETIRE: Final = 20
ETH_P_ALL: Final = 3

# include/uapi/linux/if_packet.h
SOL_PACKET: Final = 263
_RX_RING, _STATISTICS, _VERSION = 5, 6, 10
_V3: Final = 2
_READY: Final = 1
_REQUEST: Final = struct.Struct("=7I")
_COUNTS: Final = struct.Struct("=3I")
# struct tpacket_block_desc: version, offset to private data, then tpacket_hdr_v1's first words.
_BLOCK_HEAD: Final = struct.Struct("=IIIII")
_STATUS: Final = struct.Struct("=I")
_STATUS_AT: Final = 8
# struct tpacket3_hdr, and behind it, aligned to 16, a sockaddr_ll.
_PACKET: Final = struct.Struct("=IIIIIIHH")
_ADDRESS: Final = struct.Struct("=HHiHBB")
_ADDRESS_AT: Final = 48
_OUTGOING: Final = 4
# Classic BPF (linux/filter.h): code, jump if true, jump if false, operand.
_ATTACH_FILTER: Final = 26
_OPCODE: Final = struct.Struct("=HBBI")
_PROGRAM: Final = struct.Struct("@HP")
_LOAD, _BYTE, _SHIFT, _EQUAL, _RETURN = 0x20, 0x30, 0x74, 0x15, 0x06
_PACKET_TYPE, _INTERFACE = 0xFFFFF000 + 4, 0xFFFFF000 + 8
_DROP: Final = (_RETURN, 0, 0, 0)
_TAKE: Final = (_RETURN, 0, 0, SNAPLEN)
# What goes over lo (the first interface of every namespace) is seen as it leaves and as it comes.
_ONCE: Final = (
    (_LOAD, 0, 0, _PACKET_TYPE),
    (_EQUAL, 0, 3, _OUTGOING),
    (_LOAD, 0, 0, _INTERFACE),
    (_EQUAL, 0, 1, 1),
    _DROP,
)
_TCP: Final = (
    (_BYTE, 0, 0, 0),
    (_SHIFT, 0, 0, 4),
    (_EQUAL, 0, 2, 4),
    (_BYTE, 0, 0, 9),
    (_EQUAL, 4, 3, 6),
    (_EQUAL, 0, 2, 6),
    (_BYTE, 0, 0, 6),
    (_EQUAL, 1, 0, 6),
    _DROP,
)


class Captured(NamedTuple):
    """One packet: `when` in nanoseconds since the epoch, `length` its own, `data` what was kept.

    A tuple, since one is made for every packet of a flood (a dataclass takes four times as long).
    """

    when: int
    link: int
    flags: int
    length: int
    data: bytes


class Ring:
    """Every packet of the namespace's interfaces, or of the one called `name`.

    With `cooked` packets begin with their IP header, whatever the link is, and only TCP is taken.
    Raises StepError.
    """

    def __init__(self, name: str | None = None, *, cooked: bool = False) -> None:
        kind = socket.SOCK_DGRAM if cooked else socket.SOCK_RAW
        # Protocol 0 takes nothing yet: what comes before the ring is there would be in no ring.
        protocol = 0 if name is not None else socket.htons(ETH_P_ALL)
        try:
            self._sock = socket.socket(socket.AF_PACKET, kind | socket.SOCK_CLOEXEC, protocol)
        except OSError as error:
            raise step_error(
                "capture", error, remedy="it takes root and a kernel with CONFIG_PACKET"
            ) from error
        try:
            self._attach((*_ONCE, *(_TCP if cooked else ()), _TAKE))
            self._sock.setsockopt(SOL_PACKET, _VERSION, _V3)
            ring = _REQUEST.pack(BLOCK, BLOCKS, BLOCK, BLOCKS, RETIRE, 0, 0)
            self._sock.setsockopt(SOL_PACKET, _RX_RING, ring)
            self._map = mmap.mmap(self._sock.fileno(), BLOCK * BLOCKS)
            if name is not None:
                self._sock.bind((name, ETH_P_ALL))
        except OSError as error:
            self._sock.close()
            raise step_error(
                "capture: packet ring", error, remedy="free some memory, then try again"
            ) from error
        self._view = memoryview(self._map)
        self._next = 0
        self._received = self._dropped = 0
        self.statistics()
        self._received = self._dropped = 0

    def _attach(self, program: tuple[tuple[int, int, int, int], ...]) -> None:
        code = ctypes.create_string_buffer(b"".join(_OPCODE.pack(*word) for word in program))
        held = _PROGRAM.pack(len(program), ctypes.addressof(code))
        self._sock.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, held)

    def fileno(self) -> int:
        return self._sock.fileno()

    def read(self) -> Iterator[Captured]:
        """Packets that came, in their order; never waits, and goes round the ring once at most."""
        for _ in range(BLOCKS):
            start = self._next * BLOCK
            _, _, status, count, first = _BLOCK_HEAD.unpack_from(self._view, start)
            if not status & _READY:
                return
            yield from self._packets(start, start + first, count)
            _STATUS.pack_into(self._view, start + _STATUS_AT, 0)
            self._next = (self._next + 1) % BLOCKS

    def _packets(self, start: int, at: int, count: int) -> Iterator[Captured]:
        view = self._view
        end = start + BLOCK
        for _ in range(count):
            following, seconds, nanoseconds, kept, length, _, mac, net = _PACKET.unpack_from(
                view, at
            )
            _, _, index, _, kind, _ = _ADDRESS.unpack_from(view, at + _ADDRESS_AT)
            begin = at + (mac or net)
            yield Captured(
                seconds * 1_000_000_000 + nanoseconds,
                index,
                OUTBOUND if kind == _OUTGOING else INBOUND,
                length,
                bytes(view[begin : min(begin + min(kept, SNAPLEN), end)]),
            )
            at += following

    def statistics(self) -> tuple[int, int]:
        """Packets received and, of these, dropped since the beginning; the kernel's own count."""
        try:
            told = self._sock.getsockopt(SOL_PACKET, _STATISTICS, _COUNTS.size)
        except OSError:
            return self._received, self._dropped
        received, dropped, _ = _COUNTS.unpack(told)
        self._received += received
        self._dropped += dropped
        return self._received, self._dropped

    def close(self) -> None:
        """Give the ring back. Twice is once."""
        self._view.release()
        if not self._map.closed:
            self._map.close()
        self._sock.close()

"""Blocks of a pcapng file (draft-ietf-opsawg-pcapng) as bytes: values in, whole blocks out.

Each function gives one block that stands by itself, little-endian and padded to 32 bits, so that a
file that ends after any of them is a whole file. Times are nanoseconds since the epoch. Nothing
here reads or writes; text that is too long is cut, and ValueError is left to impossible numbers.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

SECTION: Final = 0x0A0D0D0A
INTERFACE: Final = 1
NAMES: Final = 4
STATISTICS: Final = 5
PACKET: Final = 6
JOURNAL: Final = 9
SECRETS: Final = 10
BYTE_ORDER: Final = 0x1A2B3C4D
TLS_KEY_LOG: Final = 0x544C534B

ETHERNET: Final = 1
RAW: Final = 101
"""Link types: with an Ethernet header, and IPv4 or IPv6 without any."""
SNAPLEN: Final = 262_144
"""What Wireshark takes for the longest packet (WTAP_MAX_PACKET_SIZE_STANDARD)."""
INBOUND: Final = 1
OUTBOUND: Final = 2

LONGEST_OPTION: Final = 8192
_END: Final = 0
_COMMENT: Final = 1
_HEAD: Final = struct.Struct("<II")
_TOTAL: Final = struct.Struct("<I")
_OPTION: Final = struct.Struct("<HH")
_SECTION: Final = struct.Struct("<IHHq")
_INTERFACE: Final = struct.Struct("<HHI")
_PACKET: Final = struct.Struct("<IIIIIII")
_FLAGS: Final = struct.Struct("<HHI")
_STATISTICS: Final = struct.Struct("<III")
_UNKNOWN_LENGTH: Final = -1
_NANOSECONDS: Final = bytes((9,))
_IPV4, _IPV6 = 1, 2


def padded(data: bytes) -> bytes:
    """The data, and zeros up to the next multiple of four."""
    return data + bytes(-len(data) % 4)


def block(kind: int, body: bytes) -> bytes:
    """Type, length, body, length. The body is padded already where it has to be."""
    body = padded(body)
    total = _HEAD.size + len(body) + _TOTAL.size
    return _HEAD.pack(kind, total) + body + _TOTAL.pack(total)


def utf8(text: str, limit: int = LONGEST_OPTION) -> bytes:
    """UTF-8 of at most `limit` bytes, cut between characters."""
    data = text.encode("utf-8", "backslashreplace")
    return data if len(data) <= limit else data[:limit].decode("utf-8", "ignore").encode("utf-8")


def options(pairs: Iterable[tuple[int, bytes]]) -> bytes:
    """A list of options with its end; empty where there are none."""
    found = b"".join(_OPTION.pack(code, len(value)) + padded(value) for code, value in pairs)
    return found + _OPTION.pack(_END, 0) if found else b""


def comment(text: str) -> bytes:
    """An `opt_comment` for `packet`: made once, used for many."""
    data = utf8(text)
    return _OPTION.pack(_COMMENT, len(data)) + padded(data) if data else b""


def section(*, hardware: str, system: str, application: str, remark: str = "") -> bytes:
    """A section header, the first block of a file."""
    told = [(_COMMENT, remark), (2, hardware), (3, system), (4, application)]
    body = _SECTION.pack(BYTE_ORDER, 1, 0, _UNKNOWN_LENGTH)
    return block(SECTION, body + options((code, utf8(text)) for code, text in told if text))


def interface(link: int, name: str, description: str) -> bytes:
    """An interface; packets name it by its number, in the order in which they are written."""
    told = [(2, utf8(name)), (3, utf8(description)), (9, _NANOSECONDS)]
    return block(INTERFACE, _INTERFACE.pack(link, 0, SNAPLEN) + options(told))


def packet(number: int, when: int, data: bytes, length: int, remark: bytes, flags: int) -> bytes:
    """One packet of interface `number`: `length` is its own, `data` what was kept of it.

    `remark` is a `comment`, `flags` INBOUND, OUTBOUND or 0. Hand-made, as it runs for every packet.
    """
    padding = -len(data) % 4
    total = _PACKET.size + len(data) + padding + _FLAGS.size + len(remark) + 4 + 4
    return b"".join(
        (
            _PACKET.pack(
                PACKET,
                total,
                number,
                when >> 32,
                when & 0xFFFFFFFF,
                len(data),
                length,
            ),
            data,
            bytes(padding),
            _FLAGS.pack(2, 4, flags),
            remark,
            bytes(4),
            _TOTAL.pack(total),
        )
    )


def secrets(lines: str) -> bytes:
    """Decryption secrets: `lines` in the NSS key log format, for all packets that follow."""
    data = lines.encode("ascii", "ignore")
    return block(SECRETS, struct.pack("<II", TLS_KEY_LOG, len(data)) + padded(data))


def journal(fields: Mapping[str, str]) -> bytes:
    """A systemd journal entry, which Wireshark and tshark list among the packets.

    Names are the journal's (MESSAGE, _PID, __REALTIME_TIMESTAMP in microseconds). A value loses its
    line breaks: each field is one line of the export format.
    """
    lines = (f"{name}={' '.join(value.split())}\n" for name, value in fields.items())
    return block(JOURNAL, utf8("".join(lines), 1 << 16))


def names(addresses: Sequence[tuple[bytes, str]]) -> bytes:
    """Name resolution: each packed IPv4 or IPv6 address and the name it stands for."""
    body = b""
    for address, name in addresses:
        value = address + utf8(name, 253) + b"\0"
        body += _OPTION.pack(_IPV4 if len(address) == 4 else _IPV6, len(value)) + padded(value)
    return block(NAMES, body + _OPTION.pack(_END, 0))


def statistics(number: int, begun: int, ended: int, received: int, dropped: int) -> bytes:
    """What interface `number` saw, by the kernel's count, and what of it was not kept."""
    body = _STATISTICS.pack(number, ended >> 32, ended & 0xFFFFFFFF)
    told = [
        (2, struct.pack("<II", begun >> 32, begun & 0xFFFFFFFF)),
        (3, struct.pack("<II", ended >> 32, ended & 0xFFFFFFFF)),
        (4, struct.pack("<Q", received)),
        (5, struct.pack("<Q", dropped)),
    ]
    return block(STATISTICS, body + options(told))

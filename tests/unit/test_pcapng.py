"""pcapng blocks: each whole by itself, whatever is in it."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netns_runtime.debug import pcapng

TIMES = st.integers(min_value=0, max_value=2**63)


def blocks_of(data: bytes) -> list[tuple[int, bytes]]:
    """A reader of ours: type and body of each block; fails where a length is wrong."""
    found = []
    while data:
        kind, total = struct.unpack_from("<II", data)
        assert total % 4 == 0
        assert len(data) >= total
        assert struct.unpack_from("<I", data, total - 4) == (total,)
        found.append((kind, data[8 : total - 4]))
        data = data[total:]
    return found


def options_of(body: bytes) -> list[tuple[int, bytes]]:
    found = []
    while body:
        code, length = struct.unpack_from("<HH", body)
        if code == 0:
            assert (length, len(body)) == (0, 4), "an end that is not the end"
            break
        found.append((code, body[4 : 4 + length]))
        padded = length + -length % 4
        assert not any(body[4 + length : 4 + padded]), "padding that is not zero"
        body = body[4 + padded :]
    return found


def test_a_section_says_its_order_and_who_made_it() -> None:
    made = pcapng.section(hardware="x", system="Linux", application="netns-debug", remark="of s")
    ((kind, body),) = blocks_of(made)
    assert (kind, body[:8]) == (0x0A0D0D0A, bytes.fromhex("4d3c2b1a 01000000"))
    assert body[8:16] == b"\xff" * 8, "a section of unknown length"
    assert options_of(body[16:]) == [(1, b"of s"), (2, b"x"), (3, b"Linux"), (4, b"netns-debug")]


def test_an_interface_has_nanoseconds_and_a_name() -> None:
    ((kind, body),) = blocks_of(pcapng.interface(pcapng.ETHERNET, "eth0", "inside"))
    assert (kind, struct.unpack_from("<HHI", body)) == (1, (1, 0, pcapng.SNAPLEN))
    assert options_of(body[8:]) == [(2, b"eth0"), (3, b"inside"), (9, b"\x09")]


@given(
    number=st.integers(0, 9),
    when=TIMES,
    data=st.binary(max_size=300),
    beyond=st.integers(0, 9),
    text=st.text(max_size=300),
    flags=st.sampled_from([0, pcapng.INBOUND, pcapng.OUTBOUND]),
)
def test_a_packet_comes_back_as_it_was(
    number: int, when: int, data: bytes, beyond: int, text: str, flags: int
) -> None:
    length = len(data) + beyond
    made = pcapng.packet(number, when, data, length, pcapng.comment(text), flags)
    ((kind, body),) = blocks_of(made)
    interface, high, low, kept, whole = struct.unpack_from("<IIIII", body)
    assert (kind, interface, high << 32 | low) == (6, number, when)
    assert (kept, whole, body[20 : 20 + kept]) == (len(data), length, data)
    told = dict(options_of(body[20 + kept + -kept % 4 :]))
    assert told[2] == struct.pack("<I", flags)
    said = text.encode("utf-8", "backslashreplace")
    assert told.get(1, b"") == said
    assert len(told) == 1 + bool(said)


@given(st.text())
def test_a_comment_is_cut_between_characters(text: str) -> None:
    cut = pcapng.utf8(text, 10)
    assert len(cut) <= 10
    cut.decode("utf-8")
    if len(text.encode("utf-8", "backslashreplace")) <= 10:
        assert cut == text.encode("utf-8", "backslashreplace")


def test_a_comment_longer_than_an_option_may_be_is_cut() -> None:
    made = pcapng.packet(0, 0, b"", 0, pcapng.comment("x" * 100_000), 0)
    ((_, body),) = blocks_of(made)
    assert len(dict(options_of(body[20:]))[1]) == pcapng.LONGEST_OPTION


@pytest.mark.parametrize("size", range(1, 9))
def test_secrets_tell_their_length_without_the_padding(size: int) -> None:
    ((kind, body),) = blocks_of(pcapng.secrets("k" * size))
    assert (kind, struct.unpack_from("<II", body)) == (10, (0x544C534B, size))
    assert body[8:] == b"k" * size + bytes(-size % 4)


def test_a_journal_field_cannot_begin_another_one() -> None:
    made = pcapng.journal({"MESSAGE": "one\n_PID=1\r\x00two", "PRIORITY": "4"})
    ((kind, body),) = blocks_of(made)
    lines = body.rstrip(b"\0").split(b"\n")
    assert kind == 9
    assert [line.partition(b"=")[0] for line in lines if line] == [b"MESSAGE", b"PRIORITY"]


def test_statistics_hold_the_counts() -> None:
    ((kind, body),) = blocks_of(pcapng.statistics(1, 5, 2**32 + 6, 700, 8))
    assert (kind, struct.unpack_from("<III", body)) == (5, (1, 1, 6))
    told = dict(options_of(body[12:]))
    assert (told[4], told[5]) == (struct.pack("<Q", 700), struct.pack("<Q", 8))
    assert (told[2], told[3]) == (struct.pack("<II", 0, 5), struct.pack("<II", 1, 6))


def test_blocks_stand_behind_each_other() -> None:
    made = [
        pcapng.section(hardware="", system="", application=""),
        pcapng.interface(pcapng.RAW, "upstream", ""),
        pcapng.packet(0, 1, b"abc", 3, b"", 0),
        pcapng.statistics(0, 0, 0, 1, 0),
    ]
    assert [kind for kind, _ in blocks_of(b"".join(made))] == [0x0A0D0D0A, 1, 6, 5]

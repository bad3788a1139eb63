"""DNS messages: what a query may be, what an answer is, and everything that is neither."""

from __future__ import annotations

import struct
from ipaddress import ip_address

import dns.edns
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netns_runtime.wire import NEED_DATA
from netns_runtime.wire import dns as wire

V4, V6 = ip_address("198.18.0.1"), ip_address("fd00:c8:0:1::c612:1")


def query(name: str = "up.test", kind: str = "A", **options: object) -> dns.message.Message:
    return dns.message.make_query(name, kind, **options)  # type: ignore[arg-type]


def header(*, number: int = 7, flags: int = 0x100, counts: tuple[int, ...] = (1, 0, 0, 0)) -> bytes:
    return struct.pack("!HH4H", number, flags, *counts)


def labels(*parts: bytes) -> bytes:
    return b"".join(bytes([len(part)]) + part for part in parts) + b"\0"


A_IN = b"\0\1\0\1"
QUESTION = labels(b"up", b"test") + A_IN
OPT = b"\0\0\x29\x04\xd0\0\0\0\0\0\0"


def answered(
    asked: dns.message.Message, answer: wire.Answer, limit: int = wire.UDP_LIMIT
) -> dns.message.Message:
    return dns.message.from_wire(wire.encode(wire.parse_query(asked.to_wire()), answer, limit))


def test_reads_a_question_and_keeps_nothing_of_its_case_but_for_the_answer() -> None:
    asked = query("uP.TeSt.", "AAAA")
    found = wire.parse_query(asked.to_wire())
    assert (found.name, found.kind, found.klass) == ("up.test", wire.AAAA, wire.IN)
    reply = answered(asked, wire.Answer(addresses=(V6,)))
    assert reply.question[0].name.to_text() == "uP.TeSt."
    assert b"uP\x04TeSt" in wire.encode(found, wire.Answer(), 512)


def test_an_answer_with_an_address_is_authoritative_and_says_recursion_is_there() -> None:
    asked = query()
    reply = answered(asked, wire.Answer(addresses=(V4,)))
    assert asked.is_response(reply)
    assert reply.flags == dns.flags.QR | dns.flags.AA | dns.flags.RA | dns.flags.RD
    [record] = reply.answer
    assert (record.ttl, record[0].to_text()) == (60, "198.18.0.1")
    assert record.name == asked.question[0].name
    assert reply.edns == -1


def test_an_answer_without_data_carries_a_soa_only_where_it_may_be_kept() -> None:
    kept = answered(query(kind="HTTPS"), wire.Answer())
    assert (kept.rcode(), kept.answer) == (dns.rcode.NOERROR, [])
    assert [record.rdtype for record in kept.authority] == [dns.rdatatype.SOA]
    assert kept.authority[0].name == dns.name.from_text("up.test.")
    missing = answered(query(), wire.Answer(wire.NXDOMAIN, is_cacheable=False))
    assert (missing.rcode(), missing.authority) == (dns.rcode.NXDOMAIN, [])


def test_a_pointer_is_answered_as_one() -> None:
    reply = answered(query("1.0.18.198.in-addr.arpa", "PTR"), wire.Answer(pointer="up.test"))
    assert reply.answer[0][0].to_text() == "up.test."


def test_an_extended_error_is_told_to_who_speaks_edns_and_to_nobody_else() -> None:
    refusal = wire.Answer(wire.NXDOMAIN, is_cacheable=False, extra=(wire.EDE_BLOCKED, "x" * 500))
    plain = answered(query(), refusal)
    assert plain.edns == -1
    reply = answered(query(use_edns=0, payload=4096), refusal)
    [option] = reply.options
    assert isinstance(option, dns.edns.EDEOption)
    assert (option.code, len(option.text or "")) == (15, 160)
    assert reply.payload == wire.UDP_LIMIT


@pytest.mark.parametrize(
    ("payload", "limit"), [(0, 512), (511, 512), (800, 800), (4096, 1232), (65535, 1232)]
)
def test_the_payload_size_is_honoured_within_bounds(payload: int, limit: int) -> None:
    assert wire.parse_query(query(use_edns=0, payload=payload).to_wire()).udp_limit == limit


def test_without_edns_an_answer_is_held_to_512_bytes() -> None:
    assert wire.parse_query(query().to_wire()).udp_limit == 512


def test_an_unknown_edns_version_is_badvers() -> None:
    reply = answered(query(use_edns=3), wire.Answer(addresses=(V4,)))
    assert (reply.rcode(), reply.edns, reply.answer) == (dns.rcode.BADVERS, 0, [])


def test_edns_options_cookies_among_them_change_nothing() -> None:
    cookie = dns.edns.GenericOption(dns.edns.OptionType.COOKIE, b"12345678")
    reply = answered(query(use_edns=0, options=[cookie]), wire.Answer(addresses=(V4,)))
    assert (len(reply.answer), reply.options) == (1, ())


def test_what_does_not_fit_is_cut_with_tc_and_whole_where_there_is_room() -> None:
    many = wire.Answer(addresses=tuple(V4 + n for n in range(100)))
    asked = query()
    cut = wire.encode(wire.parse_query(asked.to_wire()), many, 512)
    assert len(cut) <= 512
    assert dns.message.from_wire(cut).flags & dns.flags.TC
    whole = answered(asked, many, wire.TCP_LIMIT)
    assert len(whole.answer[0]) == 100
    assert not whole.flags & dns.flags.TC


def test_different_names_never_get_the_same_text() -> None:
    def name_of(*parts: bytes) -> str:
        return wire.parse_query(header() + labels(*parts) + A_IN).name

    assert name_of(b"a", b"b") == "a.b"
    assert name_of(b"a.b") != name_of(b"a", b"b")
    assert name_of(b"A") == name_of(b"a")
    assert name_of(b"\xc3\xbc") == "\\195\\188"
    assert name_of(b"a\\046b") != name_of(b"a", b"b")
    assert name_of() == ""


SILENT = {
    "nothing": b"",
    "half a header": header()[:11],
    "a response": header(flags=0x8100) + QUESTION,
    "a response of another opcode": header(flags=0xA800) + QUESTION,
}
NOT_IMPLEMENTED = {
    f"opcode {opcode}": header(flags=opcode << 11) + QUESTION for opcode in range(1, 16)
}
MALFORMED = {
    "no question": header(counts=(0, 0, 0, 0)),
    "a cookie without a question": header(counts=(0, 0, 0, 1)) + OPT,
    "two questions": header(counts=(2, 0, 0, 0)) + QUESTION * 2,
    "65535 questions": header(counts=(65535, 0, 0, 0)) + QUESTION,
    "a question that is not there": header(),
    "a name cut short": header() + b"\x02up\x04te",
    "a name without its end": header() + b"\x02up",
    "no class": header() + labels(b"up") + b"\0\1",
    "half a class": header() + labels(b"up") + b"\0\1\0",
    "a pointer to itself": header() + b"\xc0\x0c" + A_IN,
    "a pointer forward": header() + b"\xc0\x12" + A_IN + labels(b"up"),
    "a pointer into the header": header() + b"\xc0\x04" + A_IN,
    "pointers in a circle": header() + b"\x01a\xc0\x10\x01b\xc0\x0c" + A_IN,
    "an extended label type": header() + b"\x41" + b"a" * 65 + A_IN,
    "a reserved label type": header() + b"\x80" + A_IN,
    "a name of 256 bytes": header() + labels(*[b"a" * 63] * 3, b"a" * 62) + A_IN,
    "a name of 4000 bytes": header() + labels(*[b"a" * 63] * 62) + A_IN,
    "an answer": header(counts=(1, 1, 0, 0)) + QUESTION + QUESTION + b"\0\0\0\0\0\0",
    "an authority": header(counts=(1, 0, 1, 0)) + QUESTION + QUESTION + b"\0\0\0\0\0\0",
    "two OPT records": header(counts=(1, 0, 0, 2)) + QUESTION + OPT * 2,
    "an OPT record that is not there": header(counts=(1, 0, 0, 1)) + QUESTION,
    "an OPT record that is not announced": header() + QUESTION + OPT,
    "half an OPT record": header(counts=(1, 0, 0, 1)) + QUESTION + OPT[:6],
    "an OPT record of another name": header(counts=(1, 0, 0, 1)) + QUESTION + b"\x01a" + OPT,
    "an option longer than its record": header(counts=(1, 0, 0, 1))
    + QUESTION
    + OPT[:-2]
    + b"\0\4\0\x0a\0\xff",
    "another record than OPT": header(counts=(1, 0, 0, 1)) + QUESTION + QUESTION + bytes(6),
    "something behind the end": header() + QUESTION + b"\0",
    "more than is read": header(counts=(1, 0, 0, 1))
    + QUESTION
    + OPT[:-2]
    + struct.pack("!HHH", 5004, 65001, 5000)
    + bytes(5000),
    **{
        f"byte {trap:#04x} in a label": header() + labels(b"a" + bytes([trap]) + b"b") + A_IN
        for trap in (*range(0x21), 0x7F)
    },
}
BAD = {
    **{what: (data, None) for what, data in SILENT.items()},
    **{what: (data, wire.NOTIMP) for what, data in NOT_IMPLEMENTED.items()},
    **{what: (data, wire.FORMERR) for what, data in MALFORMED.items()},
}


@pytest.mark.parametrize("what", BAD)
def test_what_is_no_query_is_told_so_or_met_with_silence(what: str) -> None:
    data, rcode = BAD[what]
    with pytest.raises(wire.DNSError) as caught:
        wire.parse_query(data)
    assert caught.value.rcode == rcode
    if rcode is not None:
        said = dns.message.from_wire(wire.bare_answer(data, rcode))
        assert (said.id, said.rcode()) == (7, rcode)
        assert said.flags & dns.flags.QR
        assert not said.question


@given(st.binary(max_size=80))
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    for message in (data, header() + data, header(counts=(1, 0, 0, 1)) + QUESTION + OPT[:9] + data):
        try:
            found = wire.parse_query(message)
        except wire.DNSError:
            continue
        dns.message.from_wire(wire.encode(found, wire.Answer(), 512))


@given(st.lists(st.binary(min_size=1, max_size=63), max_size=3), st.integers(0, 65535))
def test_every_question_that_is_read_can_be_answered(parts: list[bytes], kind: int) -> None:
    data = header() + labels(*parts) + struct.pack("!HH", kind, 1)
    try:
        found = wire.parse_query(data)
    except wire.DNSError:
        return
    assert found.name.isascii()
    assert found.name.isprintable()
    for answer in (wire.Answer(), wire.Answer(addresses=(V4,)), wire.Answer(wire.NXDOMAIN)):
        assert wire.encode(found, answer, 512)[2:4] != b""


MESSAGES = [b"", b"x", b"two", b"\0" * wire.QUERY_LIMIT]
STREAM = b"".join(map(wire.framed, MESSAGES))


@pytest.mark.parametrize("step", [1, 2, 3, 700, len(STREAM)])
def test_a_stream_gives_the_same_messages_however_it_is_cut(step: int) -> None:
    reader = wire.MessageReader()
    found: list[object] = []
    for at in range(0, len(STREAM), step):
        reader.feed(STREAM[at : at + step])
        while (message := reader.next()) is not NEED_DATA:
            found.append(message)
    assert found == MESSAGES
    assert not reader


@pytest.mark.parametrize("length", [wire.QUERY_LIMIT + 1, 65535])
def test_a_longer_message_is_refused_by_its_length_alone(length: int) -> None:
    reader = wire.MessageReader()
    reader.feed(struct.pack("!H", length))
    with pytest.raises(wire.DNSError):
        reader.next()

"""WebSocket frames: walked and inspected, whole, in pieces, with trailing bytes, and broken."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wsproto.extensions import PerMessageDeflate
from wsproto.frame_protocol import FrameProtocol, Opcode

from netns_runtime.wire import ProtocolError, websocket_inspect
from netns_runtime.wire.websocket import (
    BINARY,
    CLOSE,
    FAULTS,
    FIN,
    RSV1,
    TEXT,
    Close,
    FrameError,
    Walker,
    unmask,
    write_close,
    write_frame,
)
from netns_runtime.wire.websocket_deflate import (
    Codec,
    Extensions,
    Inflater,
    extensions_of,
    only_deflate,
)
from netns_runtime.wire.websocket_inspect import (
    HELD_SLACK,
    UNALTERED,
    Inspector,
    Stream,
)

if TYPE_CHECKING:
    from collections.abc import Callable

PING = 0x9
BOMB = 8 << 20
STEPS = [1, 2, 7, 100_000]


class Replaces:
    """An examiner that puts `new` in place of `old` and refuses what has b"refuse"."""

    def __init__(
        self,
        old: bytes = b"HOLDER",
        new: bytes = b"value",
        *,
        limit: int = 1000,
        opcodes: frozenset[int] = frozenset({TEXT}),
        past: Stream | Close = UNALTERED,
    ) -> None:
        self.old, self.new = old, new
        self.limit = limit
        self.opcodes = opcodes
        self.past = past

    def control(self, _opcode: int, payload: bytes) -> bytes:
        return payload

    def whole(self, _opcode: int, data: bytes) -> bytes | Close:
        if b"refuse" in data:
            return Close(1008, "no")
        return data.replace(self.old, self.new) if self.old in data else data

    def stream(self, _opcode: int) -> Stream | Close:
        return self.past


def inspector(
    examiner: Replaces | None = None, codec: Codec | None = None, *, masked: bool = True
) -> Inspector:
    faults = FAULTS["deflate" if codec else "none"]
    return Inspector(masked=masked, faults=faults, codec=codec, examiner=examiner or Replaces())


def walker(kind: str = "none", *, masked: bool = True) -> Walker:
    return Walker(masked=masked, faults=FAULTS[kind])


def run(way: Walker, data: bytes, step: int = 100_000) -> bytes:
    out = b""
    for start in range(0, len(data), step):
        out += b"".join(way.feed(data[start : start + step]))
    return out


def feed(way: Walker, data: bytes, step: int, out: list[bytes]) -> None:
    """As `run`, where what came before an error is wanted."""
    for start in range(0, len(data), step):
        out.extend(way.feed(data[start : start + step]))


class Reader:
    """wsproto at the receiving end: an oracle that shares no code with ours."""

    def __init__(
        self, deflate: PerMessageDeflate | None = None, *, is_client: bool = False
    ) -> None:
        self.protocol = FrameProtocol(client=is_client, extensions=[deflate] if deflate else [])

    def read(self, data: bytes) -> list[tuple[Opcode, object]]:
        """Messages and control frames."""
        found: list[tuple[Opcode, object]] = []
        parts: list[str] | list[bytes] = []
        self.protocol.receive_bytes(data)
        for frame in self.protocol.received_frames():
            if frame.opcode.iscontrol():
                found.append((frame.opcode, frame.payload))
                continue
            parts.append(frame.payload)  # type: ignore[arg-type]
            if frame.message_finished:
                empty: str | bytes = "" if isinstance(frame.payload, str) else b""
                found.append((frame.opcode, empty.join(parts)))  # type: ignore[arg-type]
                parts = []
        return found


def negotiated(**parameters: object) -> PerMessageDeflate:
    deflate = PerMessageDeflate(**parameters)  # type: ignore[arg-type]
    deflate._enabled = True
    return deflate


def texts(found: list[tuple[Opcode, object]]) -> list[object]:
    return [payload for opcode, payload in found if opcode in {Opcode.TEXT, Opcode.BINARY}]


def text(data: bytes, first: int = FIN | TEXT, *, masked: bool = True) -> bytes:
    return write_frame(first, data, masked=masked)


FRAGMENTED = (
    text(b"one ", TEXT)
    + text(b"in between", FIN | PING)
    + text(b"two ", 0)
    + text(b"", 0)
    + text(b"three", FIN)
)
CONVERSATION = (
    text(b"hello")
    + FRAGMENTED
    + text(b"")
    + text(b"\x00\xff" * 3000, FIN | BINARY)
    + text(b"x" * 70_000)
    + text(b"", FIN | 0xA)
)
GOODBYE = write_close(Close(4004, "Authentication failed é"), masked=True)

MAKERS: dict[str, Callable[[], Walker]] = {
    "walker": walker,
    "inspector": lambda: inspector(),
    "inspector of binary": lambda: inspector(Replaces(opcodes=frozenset({TEXT, BINARY}))),
    "deflating": lambda: inspector(codec=Codec()),
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("name", ["walker", "inspector", "deflating"])
def test_unaltered_frames_arrive_byte_for_byte_and_counted(name: str, step: int) -> None:
    way = MAKERS[name]()
    if name != "walker":
        way = inspector(Replaces(limit=100_000), Codec() if name == "deflating" else None)
    sent = CONVERSATION + GOODBYE
    out = run(way, sent + b"bytes after the close", step)
    # A ping that came between fragments passes before the message that was held.
    assert sorted(out) == sorted(sent)
    assert Reader().read(out)[:-1] == Reader().read(CONVERSATION)
    assert out.endswith(GOODBYE)
    assert way.messages == 5
    assert way.closed == Close(4004, "Authentication failed é")
    if name == "walker":
        assert out == sent


@pytest.mark.parametrize("step", STEPS)
def test_a_long_message_goes_on_before_its_end_and_unaltered(step: int) -> None:
    way = inspector(Replaces(limit=100))
    size = 30 * HELD_SLACK if step > 1000 else 3000
    message = text(b"HOLDER" * (size // 6))
    assert len(run(way, message[: size // 2], step)) > size // 2 - HELD_SLACK - 200
    way = inspector(Replaces(limit=100))
    [(_, payload)] = Reader().read(run(way, message, step))
    assert payload == "HOLDER" * (size // 6)
    assert way.messages == 1


def test_a_ping_between_fragments_passes_at_once() -> None:
    way = inspector()
    assert run(way, text(b"one", TEXT)) == b""
    ping = text(b"now", FIN | PING)
    assert run(way, ping) == ping
    out = run(way, text(b"HOLDER", FIN))
    assert Reader().read(out) == [(Opcode.TEXT, "onevalue")]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("cut", range(1, 7))
def test_a_placeholder_split_between_fragments_is_found(cut: int, step: int) -> None:
    parts = text(b"a HOLDER"[:-cut], TEXT) + text(b"", 0) + text(b"a HOLDER"[-cut:] + b" b", FIN)
    out = run(inspector(), parts, step)
    assert Reader().read(out) == [(Opcode.TEXT, "a value b")]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("name", ["inspector", "deflating"])
def test_a_refused_message_and_what_follows_do_not_pass(name: str, step: int) -> None:
    way = MAKERS[name]()
    before = text(b"fine")
    out = run(way, before + text(b"refu", TEXT) + text(b"se", FIN) + text(b"more"), step)
    assert out == before
    assert way.refused == Close(1008, "no")
    assert way.messages == 1


@pytest.mark.parametrize("step", STEPS)
def test_a_message_past_the_limit_is_refused_where_it_must_be_judged(step: int) -> None:
    way = inspector(Replaces(limit=100, past=Close(1009, "long")))
    out = run(way, text(b"x" * 100) + text(b"x" * 101), step)
    assert Reader().read(out) == [(Opcode.TEXT, "x" * 100)]
    assert way.refused == Close(1009, "long")
    assert way.messages == 1


def test_a_message_of_endless_empty_fragments_holds_bounded_memory() -> None:
    way = inspector(Replaces(limit=1000))
    run(way, text(b"x", TEXT))
    out = run(way, text(b"", 0) * 30_000)
    assert len(out) == 0 or len(way._raw) <= 1000 + HELD_SLACK
    assert len(way._raw) + len(way._text) <= 2000 + HELD_SLACK


BROKEN: dict[str, tuple[bytes, int]] = {
    "reserved bit 1 without deflate": (text(b"x", FIN | RSV1 | TEXT), 1002),
    "reserved bit 2": (text(b"x", FIN | 0x20 | TEXT), 1002),
    "reserved bit 3 of a ping": (text(b"x", FIN | 0x10 | PING), 1002),
    "reserved opcode 3": (text(b"x", FIN | 3), 1002),
    "reserved opcode 11": (text(b"", FIN | 11), 1002),
    "unmasked": (text(b"x", masked=False), 1002),
    "a fragmented ping": (text(b"x", PING), 1002),
    "a ping of 126 bytes": (text(b"x" * 126, FIN | PING), 1002),
    "a continuation of nothing": (text(b"x", FIN), 1002),
    "a message inside another": (text(b"x", TEXT) + text(b"x"), 1002),
    "two-byte length for 5": (b"\x81\xfe\x00\x05", 1002),
    "eight-byte length for 5": (b"\x81\xff" + (5).to_bytes(8, "big"), 1002),
    "length with the highest bit": (b"\x82\xff" + (1 << 63).to_bytes(8, "big"), 1002),
    "a close of one byte": (text(b"\x03", FIN | CLOSE), 1002),
    "close code 1005": (text((1005).to_bytes(2, "big"), FIN | CLOSE), 1002),
    "close code 999": (text((999).to_bytes(2, "big"), FIN | CLOSE), 1002),
    "close code 5000": (text((5000).to_bytes(2, "big"), FIN | CLOSE), 1002),
    "a close reason that is no UTF-8": (text(b"\x03\xe8\xff", FIN | CLOSE), 1007),
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("broken", BROKEN)
@pytest.mark.parametrize("name", MAKERS)
def test_what_breaks_the_protocol_is_refused_after_what_came_before(
    name: str, broken: str, step: int
) -> None:
    way = MAKERS[name]()
    bad, code = BROKEN[broken]
    if name == "deflating" and broken.startswith("reserved bit 1"):
        bad, code = text(b"\xff\xff\xff", FIN | RSV1 | TEXT), 1007
    out: list[bytes] = []
    data = text(b"good") + bad + text(b"x" * 20)
    with pytest.raises(FrameError) as error:
        feed(way, data, step, out)
    assert error.value.code == code
    assert Reader().read(b"".join(out))[:1] == [(Opcode.TEXT, "good")]
    assert way.stop(), "a close frame of ours can follow"


def test_a_server_that_masks_is_refused() -> None:
    with pytest.raises(FrameError, match="server"):
        run(walker(masked=False), text(b"x"))


@pytest.mark.parametrize("first", [FIN | RSV1, FIN | RSV1 | PING])
def test_the_compression_bit_belongs_to_the_first_frame_of_a_message(first: int) -> None:
    with pytest.raises(FrameError):
        run(walker("deflate"), text(b"", TEXT) + text(b"x", first))


def test_a_stopped_way_passes_the_rest_of_its_frame_and_no_more() -> None:
    for way in (walker(), inspector()):
        binary = text(b"y" * 100, FIN | BINARY)
        out = run(way, binary[:50])
        assert not way.stop()
        out += run(way, binary[50:80])
        assert not way.is_stopped
        out += run(way, binary[80:] + text(b"later"))
        assert out == binary
        assert way.is_stopped


@pytest.mark.parametrize("size", [0, 1, 3, 4, 125, 511, 512, 513, 4099])
def test_a_mask_is_taken_off_at_every_length(size: int) -> None:
    data = bytes(i % 251 for i in range(size))
    key = b"\x01\x80\xfe\x37"
    assert unmask(unmask(data, key), key) == data
    assert unmask(data, key) == bytes(byte ^ key[i % 4] for i, byte in enumerate(data))


def test_a_close_reason_is_cut_at_a_character() -> None:
    [(_, payload)] = Reader().read(write_close(Close(1008, "é" * 100), masked=True))
    assert payload == (1008, "é" * 61)


CODECS = [Codec(bits, resets) for bits in (9, 10, 15) for resets in (False, True)]


def conversation(seed: int) -> list[str]:
    """Messages that point back into one another, some with a placeholder."""
    words = ["alpha beta", '{"op":1,"d":', "gamma" * 40, "HOLDER", "delta epsilon zeta", ""]
    return [
        " ".join(words[(seed + i * k) % len(words)] for k in range(1, 1 + (seed * i) % 29))
        for i in range(60)
    ]


@pytest.mark.parametrize(
    ("codec", "limit", "step"),
    [
        (codec, limit, step)
        for codec in CODECS
        for limit in (40, 100_000)
        for step in STEPS
        if codec.bits == 9 or step > 2 or limit == 40
    ],
)
@pytest.mark.parametrize("masked", [True, False])
def test_compressed_messages_survive_substitution(
    codec: Codec, limit: int, masked: bool, step: int
) -> None:
    side = "client" if masked else "server"
    parameters = {
        f"{side}_max_window_bits": codec.bits,
        f"{side}_no_context_takeover": codec.resets,
    }
    writer = FrameProtocol(client=masked, extensions=[negotiated(**parameters)])
    reader = Reader(negotiated(**parameters), is_client=not masked)
    way = inspector(Replaces(limit=limit), codec, masked=masked)
    for message in conversation(codec.bits + limit + step)[:: 1 if step > 2 else 4]:
        if not message:
            continue  # wsproto cannot write an empty one
        data = bytes(writer.send_data(message[:5], fin=False) + writer.send_data(message[5:]))
        [got] = texts(reader.read(run(way, data, step)))
        # One longer than the limit passes as it is.
        assert got in {message, message.replace("HOLDER", "value")}
        if limit > len(message):
            assert got == message.replace("HOLDER", "value")


def deflated(deflate: zlib._Compress, data: bytes, *, masked: bool = True) -> bytes:
    packed = (deflate.compress(data) + deflate.flush(zlib.Z_SYNC_FLUSH))[:-4] or b"\x00"
    return write_frame(FIN | RSV1 | TEXT, packed, masked=masked)


@pytest.mark.parametrize("bits", [8, 9, 12])
def test_bytes_pass_as_they_came_until_a_change_and_after_a_window_of_the_same(bits: int) -> None:
    sender, way = zlib.compressobj(wbits=-max(9, bits)), inspector(codec=Codec(bits))
    inflater = Inflater(Codec(max(9, bits)))
    passed = []
    for i in range(60):
        data = b"HOLDER and" if i == 3 else b"message %d repeats itself, repeats itself" % (i * 997)
        frame = deflated(sender, data)
        out = run(way, frame)
        passed.append(out == frame)
        first, payload = out[0], unmask(out[6:], out[2:6])
        got = b"".join(inflater.pieces(payload, is_last=True)) if first & RSV1 else payload
        assert got == data.replace(b"HOLDER", b"value")
    assert passed[:3] == [True] * 3
    assert not any(passed[3 : 3 + min(1 << bits, 1 << 9) // 45])
    assert passed[-1] is (bits == 9)


def test_an_empty_compressed_message_is_written_in_its_one_byte_form() -> None:
    sender, way = zlib.compressobj(wbits=-15), inspector(codec=Codec())
    reader = Reader(negotiated())
    for data in (b"HOLDER", b"", b"", b"x"):
        [got] = texts(reader.read(run(way, deflated(sender, data))))
        assert got == data.replace(b"HOLDER", b"value").decode()


def test_a_binary_message_keeps_the_context_of_those_after_it() -> None:
    sender, way = zlib.compressobj(wbits=-15), inspector(codec=Codec())
    reader = Reader(negotiated())
    for data in (b"HOLDER of", b"binary HOLDER", b"HOLDER of binary HOLDER"):
        frame = bytearray(deflated(sender, data, masked=True))
        if data.startswith(b"binary"):
            frame[0] = FIN | RSV1 | BINARY
        [(opcode, got)] = reader.read(run(way, bytes(frame)))
        if opcode is Opcode.BINARY:
            assert got == data
        else:
            assert got == data.replace(b"HOLDER", b"value").decode()


def test_a_message_whose_stream_ends_is_read_and_another_begins() -> None:
    way, out = inspector(codec=Codec()), b""
    for _ in range(2):
        whole = zlib.compressobj(wbits=-15)
        packed = whole.compress(b"a HOLDER") + whole.flush(zlib.Z_FINISH)
        out += run(way, write_frame(FIN | RSV1 | TEXT, packed + b"\x00", masked=True))
    # What goes on has no end of a stream in it: a reader that knows none can read it.
    assert texts(Reader(negotiated()).read(out)) == ["a value"] * 2


@pytest.mark.parametrize("limit", [1000, 1 << 20])
def test_a_bomb_is_refused_at_the_bound_and_never_held(
    limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(websocket_inspect, "INFLATED_LIMIT", BOMB)
    sender = zlib.compressobj(9, wbits=-15)
    block = b"\x00" * (1 << 20)
    packed = b"".join(sender.compress(block) for _ in range((BOMB >> 20) + 2))
    packed += sender.flush(zlib.Z_SYNC_FLUSH)
    way = inspector(Replaces(limit=limit), Codec())
    held: list[int] = []

    def watch() -> None:
        pieces = way.feed(write_frame(FIN | RSV1 | TEXT, packed, masked=True))
        held.extend(max(len(piece), len(way._text)) for piece in pieces)

    with pytest.raises(FrameError) as error:
        watch()
    assert error.value.code == 1009
    assert len(held) > BOMB >> 17
    assert max(held) <= limit + 65_536


def test_a_stream_that_ends_without_end_is_refused() -> None:
    with pytest.raises(FrameError) as error:
        run(
            inspector(codec=Codec()), write_frame(FIN | RSV1 | TEXT, b"\x03\x00" * 500, masked=True)
        )
    assert error.value.code == 1007


HEADERS = {
    "permessage-deflate": (Codec(), Codec()),
    "permessage-deflate; server_no_context_takeover": (Codec(), Codec(15, True)),
    'Permessage-Deflate;client_max_window_bits="10" ; client_no_context_takeover': (
        Codec(10, True),
        Codec(),
    ),
    "permessage-deflate; server_max_window_bits=9; client_max_window_bits = 8": (
        Codec(8),
        Codec(9),
    ),
}


@pytest.mark.parametrize("value", HEADERS)
def test_reads_what_was_negotiated(value: str) -> None:
    found = extensions_of([(b"SEC-WebSocket-Extensions", value.encode())])
    assert (found.client, found.server) == HEADERS[value]


def test_other_extensions_are_named() -> None:
    headers = [(b"sec-websocket-extensions", b"x-one; a=1, permessage-deflate"), (b"a", b"b")]
    assert extensions_of([*headers, (b"sec-websocket-extensions", b"x-two")]) == Extensions(
        Codec(), Codec(), ("x-one", "x-two")
    )
    assert extensions_of([]) == Extensions()


@pytest.mark.parametrize(
    "value",
    [
        "permessage-deflate; client_max_window_bits",
        "permessage-deflate; client_max_window_bits=16",
        "permessage-deflate; client_max_window_bits=09",
        "permessage-deflate; server_max_window_bits=7",
        "permessage-deflate; server_no_context_takeover=1",
        "permessage-deflate; a=1",
        "permessage-deflate; server_no_context_takeover; server_no_context_takeover",
        "permessage-deflate, permessage-deflate",
        "permessage-deflate;",
    ],
)
def test_refuses_parameters_that_no_server_may_choose(value: str) -> None:
    with pytest.raises(ProtocolError):
        extensions_of([(b"Sec-WebSocket-Extensions", value.encode())])


def test_only_extensions_that_can_be_opened_are_offered() -> None:
    headers = [
        (b"Host", b"h"),
        (
            b"Sec-WebSocket-Extensions",
            b"x-deflate-frame, permessage-deflate; client_max_window_bits",
        ),
        (b"sec-websocket-extensions", b"mux"),
    ]
    assert only_deflate(headers) == [
        (b"Host", b"h"),
        (b"Sec-WebSocket-Extensions", b"permessage-deflate; client_max_window_bits"),
    ]


frames = st.builds(
    lambda first, payload: write_frame(first, payload, masked=True),
    st.sampled_from([FIN | TEXT, TEXT, 0, FIN, FIN | BINARY, FIN | PING, FIN | RSV1 | TEXT, 0x41]),
    st.one_of(
        st.binary(max_size=140), st.sampled_from([b"HOLDER", b"\x03\x00", b"\x00", b"refuse"])
    ),
)
wire = st.one_of(
    st.binary(max_size=300),
    st.lists(st.one_of(frames, st.binary(max_size=8)), max_size=12).map(b"".join),
)


@given(data=wire, cuts=st.lists(st.integers(1, 40), max_size=20), kind=st.sampled_from([0, 1, 2]))
def test_any_bytes_give_frames_or_a_frame_error_and_the_same_however_cut(
    data: bytes, cuts: list[int], kind: int
) -> None:
    def outcome(parts: list[bytes]) -> tuple[list[tuple[Opcode, object]] | bytes, object, object]:
        way: Walker = walker("deflate")
        if kind:
            way = inspector(Replaces(limit=50), Codec(15, kind == 2))
        out, code = b"", None
        try:
            for part in parts:
                for piece in way.feed(part):
                    out += piece
        except FrameError as error:
            code = error.code
        if kind == 0:
            return out, code, way.closed
        return b"", code, (way.closed, way.refused)

    parts, rest = [], data
    for cut in cuts:
        parts.append(rest[:cut])
        rest = rest[cut:]
    assert outcome([*parts, rest]) == outcome([data])


SAID = st.text(max_size=300).filter(lambda text: "refuse" not in text)


@given(st.lists(st.tuples(SAID, st.integers(0, 4)), max_size=20), st.data())
def test_whatever_is_said_arrives_with_its_placeholders_replaced(
    said: list[tuple[str, int]], draw: st.DataObject
) -> None:
    sender, way, reader = (
        zlib.compressobj(wbits=-9),
        inspector(codec=Codec(9)),
        Reader(negotiated(client_max_window_bits=9)),
    )
    data, expected = b"", []
    for message, holders in said:
        whole = message + "HOLDER" * holders
        expected.append(whole.replace("HOLDER", "value") if len(whole.encode()) <= 1000 else whole)
        data += (
            deflated(sender, whole.encode()) if draw.draw(st.booleans()) else text(whole.encode())
        )
    step = draw.draw(st.integers(1, 1 + len(data)))
    assert texts(reader.read(run(way, data, step))) == expected
    assert way.messages == len(said)

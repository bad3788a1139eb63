"""Contents with slots: whole, in any pieces, coded, and with all that is not a slot unchanged."""

from __future__ import annotations

import gzip
import json
import zlib
from typing import Any
from urllib.parse import parse_qsl, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netns_runtime.secret import Secret, Slot
from netns_runtime.wire import ProtocolError
from netns_runtime.wire.placeholder import HELD_LIMIT
from netns_runtime.wire.rewrite import BodyRewriter, Hit, body_rewriter
from tests.support.secrets import CUTS, VALUES, pieces_of, run, secret

P = "openshell:resolve:env:TOKEN"
FORM = [(b"Content-Type", b"application/x-www-form-urlencoded; charset=utf-8")]
PARTS = [(b"content-type", b'multipart/form-data; boundary="-- x"')]
JSON = [(b"content-type", b"application/vnd.api+json; charset=utf-8")]
FIELD = Slot("form", "to ken")


def rewriter(headers: list[tuple[bytes, bytes]], *bound: Secret, **rest: Any) -> BodyRewriter:
    made = body_rewriter(headers, bound, **rest)
    assert made is not None
    return made


def rewritten(
    headers: list[tuple[bytes, bytes]], bound: Secret, data: bytes, cuts: list[int] | None = None
) -> bytes:
    made = rewriter(headers, bound)
    return run(made.feed, made.finish, pieces_of(data, cuts or []))


def pointed(value: str, *pointers: str) -> Secret:
    return secret(value, *(Slot("json", pointer) for pointer in pointers))


# urlencoded


@given(VALUES, CUTS)
def test_a_form_parses_to_exactly_the_value(value: str, cuts: list[int]) -> None:
    encoded = quote_plus(P)
    data = f"to+ken={encoded}&a={P}&%74o%20ken=x{P}%2By&token={P}&to ken&b&to+ken=".encode()
    done = rewritten(FORM, secret(value, FIELD), data, cuts)
    assert parse_qsl(done.decode(), keep_blank_values=True) == [
        ("to ken", value),
        ("a", P),
        ("to ken", f"x{value}+y"),
        ("token", P),
        ("to ken", ""),
        ("b", ""),
        ("to ken", ""),
    ]


@given(st.lists(st.sampled_from(["&", "=", "to+ken", "%", "6", "f", "o", P, P[1:], "é"])), CUTS)
def test_any_pieces_of_a_form_give_the_same(words: list[str], cuts: list[int]) -> None:
    data = "".join(words).encode()
    bound = secret("v", FIELD)
    assert rewritten(FORM, bound, data, cuts) == rewritten(FORM, bound, data)


# multipart


def part(name: str, content: str, more: str = "") -> str:
    return f'---- x\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n{content}\r\n'


@given(VALUES, CUTS)
def test_a_multipart_field_is_filled_in_and_a_file_is_not(value: str, cuts: list[int]) -> None:
    pieces = [
        part("a", P),
        part("to ken", f"<{P}>"),
        part("to ken", P, '; filename="f"'),
        part("to%20ken", f"{P}\r\n---- xy\r\n"),
    ]
    data = "".join(pieces) + f"---- x--\r\n{P}"
    done = rewritten(PARTS, secret(value, FIELD), data.encode(), cuts).decode()
    pieces[1] = pieces[1].replace(P, value)
    pieces[3] = pieces[3].replace(P, value)
    assert done == "".join(pieces) + f"---- x--\r\n{P}"


@given(
    st.lists(
        st.sampled_from(
            ["\r\n", "---- x", "--", "\r", "-", part("to ken", P), part("b", "c"), P, "\r\n\r\n"]
        )
    ),
    CUTS,
)
def test_any_pieces_of_a_multipart_give_the_same(words: list[str], cuts: list[int]) -> None:
    data = "".join(words).encode()
    bound = secret("v", FIELD)
    assert rewritten(PARTS, bound, data, cuts) == rewritten(PARTS, bound, data)


def test_a_multipart_field_of_an_unknown_coding_or_two_names_passes() -> None:
    bound = secret("v", FIELD)
    for more in ("\r\nContent-Transfer-Encoding: base64", '; name="to ken"', "; filename*=x"):
        data = (part("to ken", P, more) + "---- x--").encode()
        assert rewritten(PARTS, bound, data) == data


# JSON


@given(VALUES, CUTS)
def test_json_parses_to_exactly_the_value(value: str, cuts: list[int]) -> None:
    escaped = "".join(f"\\u{ord(character):04X}" for character in P)
    document = {
        "a": P,
        "list": [0, {"k/~": f"[{P}]", "no": P}, [P, f"{P}_2", f"{P}é"], P],
        "d": {"token": f"Bot {P}", "n": 1, P: P},
    }
    bound = pointed(value, "/list/1/k~1~0", "/list/2/2", "/d/token", "/n", "/list/9", "/list/2/1")
    text = json.dumps(document).replace(f"Bot {P}", f"Bot {escaped}\\n")
    done = json.loads(rewritten(JSON, bound, text.encode(), cuts))
    assert done == {
        "a": P,
        "list": [0, {"k/~": f"[{value}]", "no": P}, [P, f"{P}_2", f"{value}é"], P],
        "d": {"token": f"Bot {value}\n", "n": 1, P: P},
    }


def test_every_one_of_duplicate_keys_is_a_slot() -> None:
    data = f'{{"t":"{P}","\\u0074" : "{P}" , "t":{{"t":"{P}"}}}}'.encode()
    expected = f'{{"t":"v","\\u0074" : "v" , "t":{{"t":"{P}"}}}}'.encode()
    assert rewritten(JSON, pointed("v", "/t"), data) == expected


def test_an_escaped_backslash_begins_no_escape() -> None:
    data = b'{"t":"\\\\u006f' + P[1:].encode() + b'"}'
    assert rewritten(JSON, pointed("v", "/t"), data) == data
    assert rewritten(JSON, pointed("v", "/t"), data.replace(b"\\\\", b"\\")) == b'{"t":"v"}'


def test_only_strings_are_slots_and_keys_are_not() -> None:
    data = json.dumps({"t": [P, {"t": P}], P: {P: 1}, "u": {"t": P}}).encode()
    assert rewritten(JSON, pointed("v", "/t", f"/{P}", "/u"), data) == data


@pytest.mark.parametrize("data", [f'"{P}"', f'\ufeff "{P}"'])
def test_the_root_may_be_the_slot(data: str) -> None:
    assert rewritten(JSON, pointed("v", ""), data.encode()) == data.replace(P, "v").encode()


@pytest.mark.parametrize(
    "head", ['{"a":1} ', "[", "{'a'", '{"a" "b"', '{"a":1]}', '{"a":nul', '"', "\x00"]
)
def test_after_what_is_not_json_all_passes(head: str) -> None:
    data = f'{head}{{"t":"{P}"}}'.encode()
    assert rewritten(JSON, pointed("v", "/t"), data) == data


TOKENS = ["{", "}", "[", "]", ",", ":", '"', "\\", '"t"', '"x"', "1", " ", f'"{P}"', P, P[:9], "u0"]
DOCUMENTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6) | st.just(P),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["t", "x", 'q"\\', "0", "é"]), inner, max_size=4)
    ),
    max_leaves=20,
)
POINTERS = ("/t", "/t/0", "/0/t", "/x/1/t", "/é", '/q"\\')


@given(st.lists(st.sampled_from(TOKENS), max_size=40), CUTS)
def test_any_pieces_of_nearly_json_give_the_same(words: list[str], cuts: list[int]) -> None:
    data = "".join(words).encode()
    bound = pointed("v", *POINTERS)
    assert rewritten(JSON, bound, data, cuts) == rewritten(JSON, bound, data)


def _filled(document: Any, pointer: str = "") -> Any:
    if isinstance(document, dict):
        return {key: _filled(value, f"{pointer}/{key}") for key, value in document.items()}
    if isinstance(document, list):
        return [_filled(value, f"{pointer}/{number}") for number, value in enumerate(document)]
    return 'v"\\' if document == P and pointer in POINTERS else document


@given(DOCUMENTS, st.booleans(), st.sampled_from([None, 1]), CUTS)
def test_any_document_is_filled_in_at_its_pointers_and_nowhere_else(
    document: Any, is_ascii: bool, indent: int | None, cuts: list[int]
) -> None:
    text = json.dumps(document, ensure_ascii=is_ascii, indent=indent)
    done = rewritten(JSON, pointed('v"\\', *POINTERS), text.encode(), cuts).decode()
    assert json.loads(done) == _filled(document)
    if P not in text:
        assert done == text


# Which contents, and codings


def test_nothing_to_look_for_is_none() -> None:
    bound = [pointed("v", "/t")]
    assert body_rewriter([], bound) is None
    assert body_rewriter([(b"content-type", b"application/octet-stream")], bound) is None
    assert body_rewriter(JSON, []) is None
    assert body_rewriter([*JSON, *FORM], bound) is None
    assert body_rewriter([*JSON, (b"content-encoding", b"gzip")], bound) is None
    assert body_rewriter([*JSON, (b"content-encoding", b"br")], bound, bound) is None


@given(CUTS)
def test_a_placeholder_of_the_hosts_own_outside_a_slot_is_withheld(cuts: list[int]) -> None:
    bound = [pointed("v", "/t")]
    for headers, data in ((FORM, f"a={quote_plus(P)}"), (JSON, f'{{"t": "{P}", "u": "{P}"}}')):
        made = body_rewriter(headers, bound)
        assert made is not None
        run(made.feed, made.finish, pieces_of(data.encode(), cuts))
        assert made.withheld == ["TOKEN"]
    made = body_rewriter(JSON, bound)
    assert made is not None
    run(made.feed, made.finish, pieces_of(f'{{"t": "{P}"}}'.encode(), cuts))
    assert made.withheld == []


@given(CUTS)
def test_what_is_not_bound_is_withheld_and_keeps_its_length(cuts: list[int]) -> None:
    other = secret("v", name="OTHER")
    data = f'{{"say": "ask for {P[:-5]}OTHER!", "{quote_plus(P)}": 1}}'.encode()
    made = rewriter([], others=[other, secret("w", name="TOKEN"), secret("x", name="TOK")])
    assert made.may_change is False
    assert run(made.feed, made.finish, pieces_of(data, cuts)) == data
    assert sorted(made.withheld) == ["OTHER", "TOKEN"]
    assert made.substituted == []


@pytest.mark.parametrize("coding", ["gzip", "x-gzip", "deflate", "raw deflate"])
@given(cuts=CUTS)
def test_a_declared_coding_is_opened_and_closed_again(coding: str, cuts: list[int]) -> None:
    plain = json.dumps({"t": P, "x": P * 50}).encode()
    if "gzip" in coding:
        half = len(plain) // 2
        coded = gzip.compress(plain[:half]) + gzip.compress(plain[half:])
    else:
        coded = zlib.compress(plain)[2:-4] if coding == "raw deflate" else zlib.compress(plain)
    headers = [*JSON, (b"Content-Encoding", coding.split()[-1].encode())]
    bound = secret("v", Slot("json", "/t"), codings=("gzip", "deflate"))
    done = rewritten(headers, bound, coded, cuts)
    bits = 31 if "gzip" in coding else -15 if coding == "raw deflate" else 15
    assert json.loads(zlib.decompress(done, bits)) == {"t": "v", "x": P * 50}


@pytest.mark.parametrize("data", [b"no gzip at all", gzip.compress(b"{}")[:-3], b"\x1f"])
def test_broken_coded_content_is_a_protocol_error(data: bytes) -> None:
    bound = secret("v", Slot("json", "/t"), codings=("gzip",))
    with pytest.raises(ProtocolError):
        rewritten([*JSON, (b"content-encoding", b"gzip")], bound, data)


def test_an_empty_coded_content_stays_empty() -> None:
    bound = secret("v", Slot("json", "/t"), codings=("gzip",))
    assert rewritten([*JSON, (b"content-encoding", b"gzip")], bound, b"") == b""


def test_a_zip_bomb_is_refused_within_bounded_memory() -> None:
    bound = secret("v", Slot("json", "/t"), codings=("gzip",))
    made = rewriter([*JSON, (b"content-encoding", b"gzip")], bound)
    bomb = gzip.compress(bytes(16 << 20), 6)
    given: list[int] = []
    with pytest.raises(ProtocolError) as raised:
        given.extend(len(piece) for piece in made.pieces(bomb))
    assert raised.value.status == 413
    assert max(given) < 64 * 1024


def test_what_is_held_back_is_bounded() -> None:
    floods = {
        b'{"t":"': (JSON, pointed("v", "/t")),
        b'{"': (JSON, pointed("v", "/t")),
        b"to+ken=": (FORM, secret("v", FIELD)),
        b"&": (FORM, secret("v", FIELD)),
        b"---- x\r\n": (PARTS, secret("v", FIELD)),
        part("to ken", "").encode()[:-2]: (PARTS, secret("v", FIELD)),
    }
    for start, (headers, bound) in floods.items():
        for flood in (b"a", b"\\\\", b"%6f", b"-", P.encode(), b"openshell%3Aresolve%3Aenv%3A"):
            made = rewriter(headers, bound)
            given = len(made.feed(start))
            for _ in range(40):
                given += len(made.feed(flood * 60))
            held = len(start) + 2400 * len(flood) - given
            if flood != P.encode():
                assert held <= max(HELD_LIMIT, 16 * 1024 + 100), (start, flood)


def test_no_value_is_in_a_repr_or_an_error() -> None:
    bound = secret("v3ry-s3cr3t", Slot("json", "/t"), codings=("gzip",))
    made = rewriter(JSON, bound)
    made.feed(f'{{"t":"{P}"'.encode())
    broken = rewriter([*JSON, (b"content-encoding", b"gzip")], bound)
    with pytest.raises(ProtocolError) as raised:
        broken.feed(b"v3ry-s3cr3t")
    seen = f"{bound!r}{made!r}{vars(made)!r}{made.substituted!r}{raised.value!r}{raised.value}"
    assert "v3ry-s3cr3t" not in seen
    assert raised.value.__cause__ is None


def test_hits_are_told_once() -> None:
    made = rewriter(JSON, pointed("v", "/t/0", "/t/1"))
    made.feed(json.dumps({"t": [P * 3, P]}).encode())
    assert made.substituted == [Hit("TOKEN", "json /t/0"), Hit("TOKEN", "json /t/1")]

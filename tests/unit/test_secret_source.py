"""Where the value of a secret is read, and that no error of it shows the value."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from netns_runtime.errors import UsageError
from netns_runtime.secretsource import VALUE_LIMIT, Found, parse_value, read_secret
from netns_runtime.spec import parse_secret

if TYPE_CHECKING:
    from pathlib import Path


def read(text: str, **environment: str) -> Found:
    return read_secret(parse_secret(text), environment, lambda _option, path: path)


def pipe_with(data: bytes) -> int:
    out, into = os.pipe()
    os.write(into, data)
    os.close(into)
    return out


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def test_a_variable_is_read_by_its_own_name_or_another() -> None:
    assert read("TOKEN", TOKEN="sesame").value == "sesame"
    assert read("TOKEN=env:OTHER", TOKEN="x", OTHER="sesame").value == "sesame"


def test_a_file_is_read_and_remembered_so_that_it_can_be_hidden(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_bytes(b"sesame\n")
    found = read(f"TOKEN=file:{path}")
    assert (found.value, found.path) == ("sesame", str(path))


@pytest.mark.parametrize("form", ["fd:{}", "file:/dev/fd/{}", "file:/proc/self/fd/{}"])
def test_a_descriptor_is_read_to_its_end_and_closed(form: str) -> None:
    fd = pipe_with(b"sesame\n")
    found = read("TOKEN=" + form.format(fd))
    assert (found.value, found.path) == ("sesame", None)
    assert not is_open(fd)


def test_a_file_behind_a_descriptor_is_hidden_too(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_bytes(b"sesame")
    fd = os.open(path, os.O_RDONLY)
    assert read(f"TOKEN=fd:{fd}").path == str(path)


def test_a_descriptor_is_closed_even_where_its_value_is_refused() -> None:
    fd = pipe_with(b"ses\0ame")
    with pytest.raises(UsageError, match="control character"):
        read(f"TOKEN=fd:{fd}")
    assert not is_open(fd)


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b"sesame", "sesame"),
        (b"sesame\n", "sesame"),
        (b"sesame\r\n", "sesame"),
        (b" sesame ", " sesame "),
        ("sésame".encode(), "sésame"),
        (b"s" * VALUE_LIMIT + b"\n", "s" * VALUE_LIMIT),
    ],
)
def test_one_newline_at_the_end_is_dropped_and_nothing_else(data: bytes, value: str) -> None:
    assert parse_value(data, "x") == value


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "empty"),
        (b"\n", "empty"),
        (b"\r\n", "empty"),
        (b"sesame\n\n", "control character"),
        (b"sesame\r", "control character"),
        (b"ses\tame", "control character"),
        (b"ses\x7fame", "control character"),
        ("ses\x85ame".encode(), "control character"),
        (b"sesame\xff", "not UTF-8"),
        (b"sesame" * VALUE_LIMIT, "longer than 64 KiB"),
        (b"s" * (VALUE_LIMIT + 1), "longer than 64 KiB"),
        (b"openshell:resolve:env:SESAME", "placeholder itself"),
        (b".", "only dots"),
        (b"..\n", "only dots"),
    ],
)
def test_a_value_that_is_no_line_of_text_is_refused_unseen(data: bytes, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        parse_value(data, "--secret T=fd:9")
    message = str(caught.value)
    assert message.startswith("--secret T=fd:9: ")
    assert len(message) < 200
    assert "sesame" not in message.lower()
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_a_variable_that_is_not_utf8_is_refused_unseen() -> None:
    with pytest.raises(UsageError, match="not UTF-8"):
        read("TOKEN", TOKEN=os.fsdecode(b"sesame\xff"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("TOKEN", "no such variable"),
        ("TOKEN=file:/nowhere", "No such file"),
        ("TOKEN=file:/", "neither a file nor a pipe"),
        ("TOKEN=file:/dev/null", "neither a file nor a pipe"),
        ("TOKEN=fd:987", "descriptor 987 is not open: .*sudo closes it unless -C 988"),
        ("TOKEN=fd:1", "that is where CMD writes"),
    ],
)
def test_a_source_that_is_not_there_is_one_line(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        read(text)
    assert str(caught.value).startswith("--secret TOKEN=")


def test_a_second_name_of_the_file_is_refused_because_cmd_could_read_that(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_bytes(b"sesame")
    (tmp_path / "other").hardlink_to(path)
    with pytest.raises(UsageError, match="hard links"):
        read(f"TOKEN=file:{path}")


def test_a_value_is_in_no_repr() -> None:
    assert "sesame" not in repr(read("TOKEN", TOKEN="sesame"))

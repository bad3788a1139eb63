"""Headless Chromium on a file, in a network namespace of its own: nothing can leave.

`seen` gives the page as the browser has it, its complaints and a picture; PNG is decoded here, by
its specification (RFC 2083), because nothing more is needed than pixels.
"""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import tempfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

PROGRAMS: Final = ("chromium-headless-shell", "chromium")
_CONSOLE: Final = re.compile(r":CONSOLE:\d+\] (.*)")
_ADDRESS: Final = re.compile(r"\b(?:https?|wss?|ftp)://[^\"\\ ]+")


@dataclass(frozen=True)
class Picture:
    """`rows` are bytes, `depth` of them for each pixel."""

    width: int
    height: int
    depth: int
    rows: tuple[bytes, ...] = field(repr=False)

    def colours(self) -> dict[bytes, int]:
        """How often each colour is there."""
        found: dict[bytes, int] = {}
        for row in self.rows:
            for at in range(0, len(row), self.depth):
                pixel = row[at : at + 3]
                found[pixel] = found.get(pixel, 0) + 1
        return found


@dataclass(frozen=True)
class Seen:
    """`dom` is the page as parsed; `console` what the browser complained of, violations of the
    page's policy included; `asked` addresses it asked for."""

    dom: str = field(repr=False)
    console: tuple[str, ...]
    asked: tuple[str, ...]
    picture: Picture


def program() -> str | None:
    """Ubuntu's chromium is a snap, which sees neither this file system nor this namespace."""
    found = (shutil.which(name) for name in PROGRAMS)
    return next((p for p in found if p and "/snap/" not in str(Path(p).resolve())), None)


def seen(page: Path, *, width: int = 1280, height: int = 2000, is_dark: bool = False) -> Seen:
    browser = program()
    assert browser is not None
    with tempfile.TemporaryDirectory() as place:
        log, png = Path(place) / "net.json", Path(place) / "page.png"
        common = [
            *("unshare", "--net", "--", browser, "--headless", "--no-sandbox", "--disable-gpu"),
            *("--enable-logging=stderr", f"--user-data-dir={place}/profile", "--hide-scrollbars"),
            *("--no-first-run", "--disable-background-networking", "--disable-extensions"),
            *([] if not is_dark else ["--blink-settings=preferredColorScheme=0"]),
            f"--window-size={width},{height}",
        ]
        whence = page.resolve().as_uri()
        drawn = _run([*common, f"--screenshot={png}", f"--log-net-log={log}", whence], place)
        dumped = _run([*common, "--dump-dom", whence], place)
        console = tuple(_CONSOLE.findall(drawn.stderr) + _CONSOLE.findall(dumped.stderr))
        asked = tuple(_ADDRESS.findall(log.read_text("utf-8", "replace")))
        return Seen(dumped.stdout, console, asked, decoded(png.read_bytes()))


def _run(words: list[str], home: str) -> subprocess.CompletedProcess[str]:
    environment = {"HOME": home, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=90, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done


def decoded(data: bytes) -> Picture:
    """A PNG of 8 bits, RGB or RGBA, not interlaced: what browsers write."""
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    at, packed, head = 8, b"", b""
    while at < len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        body = data[at + 8 : at + 8 + size]
        if kind == b"IHDR":
            head = body
        elif kind == b"IDAT":
            packed += body
        at += 12 + size
    width, height, bits, colour, _, _, interlaced = struct.unpack(">IIBBBBB", head)
    assert (bits, interlaced) == (8, 0)
    depth = {2: 3, 6: 4}[colour]
    raw, step = zlib.decompress(packed), width * depth
    rows: list[bytes] = []
    before = bytes(step)
    for number in range(height):
        start = number * (step + 1)
        line = raw[start + 1 : start + 1 + step]
        before = _unfiltered(raw[start], bytearray(line), before, depth)
        rows.append(before)
    return Picture(width, height, depth, tuple(rows))


def _unfiltered(kind: int, line: bytearray, above: bytes, depth: int) -> bytes:
    """RFC 2083, 6: none, sub, up, average, Paeth."""
    if kind == 0:
        return bytes(line)
    for at in range(len(line)):
        left = line[at - depth] if at >= depth else 0
        corner = above[at - depth] if at >= depth else 0
        if kind == 1:
            guess = left
        elif kind == 2:
            guess = above[at]
        elif kind == 3:
            guess = (left + above[at]) // 2
        else:
            guess = _paeth(left, above[at], corner)
        line[at] = (line[at] + guess) & 0xFF
    return bytes(line)


def _paeth(left: int, above: int, corner: int) -> int:
    estimate = left + above - corner
    distances = (abs(estimate - left), abs(estimate - above), abs(estimate - corner))
    return (left, above, corner)[distances.index(min(distances))]

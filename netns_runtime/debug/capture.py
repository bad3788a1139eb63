"""`netns-debug capture [SANDBOX] -o FILE`: its packets, with owners and plaintext, for Wireshark.

The packets are those of the sandbox's own interfaces; the keys of terminated TLS come from its
proxy, and what the file then shows holds placeholders where a secret's value goes upstream. It ends
with the sandbox, at a limit or at an interrupt, and leaves a whole file either way; where that
cannot be written any further, in one UsageError.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from netns_runtime.cli.text import say, say_json
from netns_runtime.debug import live
from netns_runtime.debug.text import shown
from netns_runtime.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from netns_runtime.debug.capturesummary import Summary

USAGE: Final = """\
usage: netns-debug capture [SANDBOX] -o FILE.pcapng [OPTIONS] [--json]

  -o FILE            a new file, made for root alone; - is standard output
  --seconds N        end after so long
  --packets N        end after so many packets
  --with-secrets     the proxy's own packets to upstreams too, with their keys: secrets' values
                     are in there

Every packet carries its process as a comment, and keys of TLS that the proxy terminates are in the
file, so that `tshark -r FILE` and Wireshark show what was said. What was refused before it became a
packet stands among them as a journal entry. Without --with-secrets only the sandbox's side is
taken, where placeholders stand in place of values. Flows that were open before stay ciphertext.
Ends with the sandbox, at a limit, or at Ctrl-C.
"""
_NUMBERS: Final[dict[str, Callable[[str], float]]] = {"--seconds": float, "--packets": int}


@dataclass(frozen=True, slots=True)
class Order:
    """The command line."""

    sandbox: str | None
    file: str
    seconds: float | None = None
    packets: int | None = None
    secrets: bool = False


def parse(words: Sequence[str]) -> Order:
    """Read the command line. Raises UsageError."""
    given: dict[str, str] = {}
    names: list[str] = []
    secrets = False
    rest = iter(words)
    for word in rest:
        name, equals, value = word.partition("=")
        if name in ("-o", *_NUMBERS):
            found = value if equals else next(rest, None)
            if found is None:
                raise UsageError(f"{name} needs a value", remedy="see netns-debug capture --help")
            if name in given:
                raise UsageError(f"{name} is given twice", remedy="give it once")
            given[name] = found
        elif word == "--with-secrets":
            secrets = True
        elif word.startswith("-"):
            raise UsageError(
                f"unknown option {shown(word)}", remedy="see netns-debug capture --help"
            )
        else:
            names.append(word)
    if len(names) > 1:
        raise UsageError("capture takes one sandbox", remedy="run it once for each")
    if not given.get("-o"):
        raise UsageError("capture needs a file", remedy="as in -o capture.pcapng")
    numbers = {name: _number(name, given[name]) for name in _NUMBERS if name in given}
    packets = numbers.get("--packets")
    return Order(
        names[0] if names else None,
        given["-o"],
        numbers.get("--seconds"),
        None if packets is None else int(packets),
        secrets,
    )


def _number(name: str, text: str) -> float:
    try:
        found = _NUMBERS[name](text)
    except ValueError:
        found = -1
    if not 0 < found < 1e12:
        raise UsageError(f"{name} {shown(text)}", remedy=f"give a number, as in {name} 10")
    return found


def main(words: list[str], as_json: bool) -> int:
    """Capture until there is an end to it."""
    order = parse(words)
    if os.geteuid() != 0:
        raise UsageError("capture needs root", remedy="run sudo netns-debug capture …")
    record = live.chosen(order.sandbox)
    from netns_runtime.debug.capturing import Capturing

    with Capturing(record, order) as capturing:
        if order.secrets:
            _note(f"{shown(order.file)} will hold the values of secrets: treat it as one")
        began = {"began": {"sandbox": record.name, "file": order.file}}
        _note(json.dumps(began) if as_json else f"capturing {record.name}; Ctrl-C ends it")
        summary = capturing.run()
    _tell(summary, order, as_json=as_json)
    return 0


def _note(text: str) -> None:
    sys.stderr.write(text + "\n" if text.startswith("{") else f"netns-debug: {text}\n")
    sys.stderr.flush()


def _tell(summary: Summary, order: Order, *, as_json: bool) -> None:
    if as_json:
        if order.file == "-":
            _note(json.dumps(summary.fields()))
        else:
            say_json(summary.fields())
        return
    for line in summary.lines(order.file):
        if order.file == "-":
            _note(line)
        else:
            say(line)

"""`netns-debug`: what sandboxes there are, what was refused in them, and whether one could start.

Every subcommand has a form for people and, with --json, one for programs. Errors are one line on
stderr and exit status 125; `doctor` exits 1 when a sandbox could not start, or is not well.
"""

from __future__ import annotations

import errno
import gc
import os
import shutil
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from netns_runtime import __version__, state
from netns_runtime.cli.text import columns, internal_error, pairs, printable, say, say_json, settle
from netns_runtime.counts import counts_of
from netns_runtime.errors import EXIT_FAILED, NetnsError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

USAGE: Final = """\
usage: netns-debug COMMAND [SANDBOX] [--json]

  list              the running sandboxes
  show [SANDBOX]    one of them, whole
  stats [SANDBOX]   refused connects: exact counts by reason, and where to
  flows [SANDBOX]   open and recent flows: process, host, bytes, rates, round-trip times,
                    retransmits, WebSocket state
  top [SANDBOX]     the same, live, with sparklines of refusals and traffic
  why HOST[:PORT]   whether it is allowed, at which step it stopped, and what would allow it
  enter [SANDBOX] [-- CMD]
                    a shell, or CMD, inside: the same namespaces, policy and restrictions
  metrics [--listen ADDR:PORT]
                    Prometheus metrics of all sandboxes, once or for scrapes
  trace [SANDBOX]   what happens, as it happens: refusals, decisions, upstream's failures
  capture [SANDBOX] -o FILE
                    packets as pcapng, with their process and the keys of terminated TLS
  learn -- CMD      run CMD in report mode and write the policy that it needs
  ws [SANDBOX]      WebSockets that failed: who ended it, the evidence, what to do
  report [SANDBOX|AUDIT] -o FILE.html
                    all of it as one page: timeline, who talked to whom, refusals with remedies
  policy SANDBOX --set FILE
                    replace the policy while it runs: flows that it would refuse are closed,
                    all others stay; a file that does not load changes nothing
  preset list       the shipped presets
  preset show NAME  one of them: hosts, ports, and where its secrets go
  doctor            what a sandbox needs of this machine, and what is missing
  doctor SANDBOX    is it well: proxy, DNS, MTU, trust, clock, probe, uplink, resolver, firewall
  gc                remove what killed sandboxes left

SANDBOX may be left out while only one is running. --json on each.
exit status: 0; 1 from doctor if a sandbox could not start or is not well; 125 for any error
"""


def main() -> int:
    """The process: its value is the exit status."""
    status = settle(_status())
    if sys.argv[1:2] == ["why"]:
        # Taking the interpreter apart would be a tenth of the time (6 ms of 61, bench why).
        os._exit(status)
    return status


def _status() -> int:
    try:
        return _run(sys.argv[1:])
    except NetnsError as error:
        sys.stderr.write(f"netns-debug: {error}\n")
        return error.status
    except KeyboardInterrupt:
        return 128 + 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return EXIT_FAILED
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EPIPE, errno.EBADF):
            return internal_error("netns-debug", error)
        return EXIT_FAILED
    except Exception as error:
        return internal_error("netns-debug", error)


def _run(words: list[str]) -> int:
    # What follows `--` is somebody else's command line.
    ours = words.index("--") if "--" in words else len(words)
    as_json = "--json" in words[:ours]
    rest = [word for word in words[:ours] if word != "--json"]
    if not rest or rest[0] in ("--help", "-h"):
        sys.stdout.write(USAGE)
        return 0 if rest else EXIT_FAILED
    if rest[0] == "--version":
        sys.stdout.write(f"netns-debug {__version__}\n")
        return 0
    if rest[0] in _EXPLAINING:
        return _explain(rest[0], rest[1:], words[ours:], as_json=as_json)
    rest += words[ours:]
    if any(word in ("--help", "-h") for word in rest[1:]):
        if rest[0] == "doctor":
            from netns_runtime.debug import doctor

            sys.stdout.write(doctor.USAGE)
        else:
            sys.stdout.write(USAGE)
        return 0
    command = _COMMANDS.get(rest[0])
    if command is None:
        known_commands = ", ".join([*_COMMANDS, *_EXPLAINING])
        raise UsageError(f"unknown command {rest[0]}", remedy=f"use one of {known_commands}")
    known = ("--set",) if rest[0] == "policy" else ()
    option = next((word for word in rest[1:] if word.startswith("-") and word not in known), None)
    if option is not None:
        raise UsageError(f"unknown option {option}", remedy="see netns-debug --help")
    if os.geteuid() != 0 and rest[0] not in ("doctor", "preset"):
        raise UsageError("needs root", remedy="run sudo netns-debug …")
    return command(rest[1:], as_json)


def _explain(command: str, words: list[str], after: list[str], *, as_json: bool) -> int:
    """Run a command of netns_runtime/debug, which none of the others imports."""
    from importlib import import_module

    if command == "why":
        # What is over in milliseconds leaves nothing to collect.
        gc.disable()
    module = import_module(_EXPLAINING[command])
    if any(word in ("--help", "-h") for word in words):
        sys.stdout.write(module.USAGE)
        return 0
    status: int = module.main([*words, *after], as_json)
    return status


def _only(words: list[str], command: str) -> None:
    if words:
        raise UsageError(f"{command} takes no {words[0]!r}", remedy="see netns-debug --help")


def _chosen(words: list[str], command: str) -> state.Record:
    from netns_runtime.debug.live import chosen

    _only(words[1:], command)
    return chosen(words[0] if words else None)


def _list(words: list[str], as_json: bool) -> int:
    _only(words, "list")
    records, _, _ = state.survey()
    if as_json:
        say_json([asdict(record) for record in records])
        return 0
    rows = [
        (
            record.name,
            record.pid or "-",
            record.uid,
            record.started,
            record.probe,
            " ".join(record.command),
        )
        for record in records
    ]
    say(_fitting(columns(("NAME", "PID", "UID", "STARTED", "PROBE", "COMMAND"), rows)))
    return 0


def _fitting(table: str) -> str:
    """A table's lines, cut to the terminal where there is one; a program gets them whole."""
    if not sys.stdout.isatty():
        return table
    width = shutil.get_terminal_size().columns
    return "\n".join(line[:width] for line in table.splitlines())


def _wrapped(values: dict[str, Any]) -> str:
    """As `pairs`, with long values on as many lines as they need."""
    from netns_runtime.debug.text import Page

    page, width = Page(), max(map(len, values)) + 2
    return "\n".join(
        page.paragraph(printable(value), indent=key.ljust(width), hanging=" " * width)
        for key, value in values.items()
    )


def _show(words: list[str], as_json: bool) -> int:
    record = _chosen(words, "show")
    fields: dict[str, Any] = {
        key: value for key, value in asdict(record).items() if value is not None
    }
    fields["totals"] = counts_of(record)["totals"]
    if as_json:
        say_json(fields)
        return 0
    totals = fields.pop("totals")
    secrets = fields.pop("secrets")
    fields = {
        key: " ".join(value) if isinstance(value, (tuple, list)) else value
        for key, value in fields.items()
    }
    from netns_runtime.supplied import told

    fields |= {f"secret {entry['name']}": told(entry) for entry in secrets}
    say(_wrapped({**fields, **{f"refused {key}": value for key, value in totals.items()}}))
    return 0


def _stats(words: list[str], as_json: bool) -> int:
    record = _chosen(words, "stats")
    found = counts_of(record)
    if as_json:
        say_json(found)
        return 0
    say(pairs({"sandbox": record.name, **found["totals"]}))
    if found["destinations"]:
        say("")
        rows = [
            (
                entry["count"],
                entry["reason"],
                entry["address"],
                entry["port"],
                entry.get("comm", "-"),
                entry.get("pid", "-"),
                entry["counted_by"],
            )
            for entry in found["destinations"]
        ]
        header = ("COUNT", "REASON", "ADDRESS", "PORT", "LAST BY", "PID", "COUNTED BY")
        say(_fitting(columns(header, rows)))
    return 0


def _policy(words: list[str], as_json: bool) -> int:
    if len(words) != 3 or words[1] != "--set":
        raise UsageError("policy takes SANDBOX --set FILE", remedy="see netns-debug --help")
    record = _chosen(words[:1], "policy")
    from netns_runtime.policy.file import read_text

    text = read_text(words[2])
    request = {"command": "policy", "name": os.path.abspath(words[2]), "text": text}
    told = _answer(record, request)
    closed, notes = told["closed"], told.get("notes", [])
    if as_json:
        say_json({"sandbox": record.name, "closed": closed, "notes": notes})
    else:
        flows = "1 flow" if closed == 1 else f"{closed} flows"
        say("; ".join([f"{record.name} has the new policy: closed {flows}", *notes]))
    return 0


def _preset(words: list[str], as_json: bool) -> int:
    from netns_runtime.cli.preset import list_presets, show_preset

    if words == ["list"]:
        list_presets(as_json=as_json)
    elif len(words) == 2 and words[0] == "show":
        show_preset(words[1], as_json=as_json)
    else:
        raise UsageError("preset takes list, or show NAME", remedy="see netns-debug --help")
    return 0


def _answer(record: state.Record, request: dict[str, Any]) -> dict[str, Any]:
    from netns_runtime.control import ask

    answer = ask(record.name, request)
    if "error" in answer:
        raise UsageError(str(answer["error"]))
    return answer


def _doctor(words: list[str], as_json: bool) -> int:
    if words:
        from netns_runtime.debug.doctor import main as examine

        return examine(words, as_json)
    from netns_runtime.doctor import checks

    found = checks()
    is_able = all(check.is_present for check in found if check.need == "needed")
    if as_json:
        say_json({"able": is_able, "checks": [asdict(check) for check in found]})
    else:
        for check in found:
            mark = "ok  " if check.is_present else ("FAIL" if check.need == "needed" else "less")
            remedy = f"; {check.remedy}" if check.remedy and not check.is_present else ""
            say(f"{mark}  {check.feature}: {check.detail}{remedy}".rstrip(": "))
        say("a sandbox can start" if is_able else "no sandbox can start here")
    return 0 if is_able else 1


def _gc(words: list[str], as_json: bool) -> int:
    _only(words, "gc")
    from netns_runtime.reclaim import reclaim

    done = reclaim(pins=True)
    if as_json:
        say_json(asdict(done))
    elif done.is_empty:
        say("nothing was left behind")
    else:
        say(
            pairs(
                {
                    "state files": " ".join(done.names) or "-",
                    "cgroups": " ".join(done.cgroups) or "-",
                    "probe entries": done.probe_entries,
                    "probe sets": " ".join(done.pins) or "-",
                }
            )
        )
    return 0


_COMMANDS: Final[dict[str, Callable[[list[str], bool], int]]] = {
    "list": _list,
    "show": _show,
    "stats": _stats,
    "policy": _policy,
    "preset": _preset,
    "doctor": _doctor,
    "gc": _gc,
}

# Each has `main(words, as_json) -> int` and a USAGE of its own.
_EXPLAINING: Final[dict[str, str]] = {
    "capture": "netns_runtime.debug.capture",
    "enter": "netns_runtime.debug.enter",
    "flows": "netns_runtime.debug.flows",
    "metrics": "netns_runtime.debug.metrics",
    "top": "netns_runtime.debug.top",
    "trace": "netns_runtime.debug.trace",
    "why": "netns_runtime.debug.why",
    "learn": "netns_runtime.debug.learn",
    "ws": "netns_runtime.debug.ws",
    "report": "netns_runtime.debug.report",
}

if __name__ == "__main__":
    sys.exit(main())

"""The command line of netns-run: one table of options, one pass over the words.

Written out because every option must answer a mistake with one line and exit status 125, and
because argparse costs a launch 13 ms. `spec` parses the values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from netns_runtime.errors import UsageError
from netns_runtime.spec import (
    AUDIT_FORMATS,
    PROBES,
    Spec,
    parse_descriptor,
    parse_limit,
    parse_name,
    parse_resolver,
    parse_secret,
)

USAGE: Final = """\
usage: netns-run [OPTIONS...] [--] CMD [ARGS...]

Runs CMD in its own network namespace. Whatever leaves it goes through the proxy at
10.200.0.1:3128 under a policy; every other connect is refused, counted and explained.

  --policy FILE          YAML policy; default: allow nothing; repeatable
  --preset NAME          a shipped policy, see netns-debug preset list; repeatable
  --allow HOST[:PORT]    add a rule; repeatable; no port means 80 and 443, HOST:* any;
                         *.HOST is every name below HOST
  --redirect on|off      carry clients that ignore the proxy (default on); off: they are refused
  --secret NAME[=SOURCE] CMD sees a placeholder in the variable NAME and the proxy puts the
                         value in on its way to the hosts it is bound to; SOURCE is env:VAR
                         (default env:NAME), file:PATH or fd:N; repeatable
  --uplink NETNS         dial from this namespace (name or path) instead of the host's
  --resolver ADDR[:PORT] resolve upstream names here instead of with the host's resolver
  --upstream-ca FILE     extra roots, in PEM, for verifying upstream certificates; CMD trusts
                         them too
  --audit FILE|fd:N      JSON lines, one event each
  --audit-format json|ocsf
                         the contract's own names (default), or OCSF 1.x classes
  --status-fd N          JSON lines: started (ids, pid), exited (code)
  --user NAME|UID        run CMD as; default: who called sudo
  --read-only            file system read-only except the working directory, a private
                         /tmp and --writable PATH; the default for uid 0
  --writable PATH        writable, or visible under /tmp; repeatable; `/` turns --read-only off
  --expose-socket PATH   let one unix socket of the host in; repeatable
  --keep-fd N            let one inherited descriptor in; repeatable
  --limit KEY=N          flows (open at once, 10000), names (invented under wildcards, 1000),
                         pids, memory (bytes, or with k, m, g); repeatable
  --name NAME            of the sandbox; default: generated
  --probe auto|bpf|nft   default auto: bpf where the kernel has it
  --report               allow what the policy would refuse, and say so
  --dry-run              print addresses, ruleset, probes, policy and mounts; change nothing
  -v, --verbose          say what happens, and why something was refused, on stderr
  --version, --help

exit status: CMD's own (128+N for a signal); 125 netns-run failed, 126 cannot execute,
127 not found
"""

_LATER: Final = {"--publish": "published ports"}

_Put = Callable[[dict[str, Any], str], None]


def _store(key: str, parse: Callable[[str], Any] = str) -> _Put:
    def put(values: dict[str, Any], text: str) -> None:
        values[key] = parse(text)

    return put


def _append(key: str, parse: Callable[[str], Any] = str) -> _Put:
    def put(values: dict[str, Any], text: str) -> None:
        values[key] = (*values.get(key, ()), parse(text))

    return put


def _choice(option: str, choices: tuple[str, ...]) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in choices:
            raise UsageError(
                f"{option} {text}: unknown value", remedy=f"use {' or '.join(choices)}"
            )
        return text

    return parse


def _put_limit(values: dict[str, Any], text: str) -> None:
    values["limits"] = parse_limit(text, values.get("limits", Spec(command=("x",)).limits))


_VALUES: Final[dict[str, _Put]] = {
    "--policy": _append("policies"),
    "--preset": _append("presets"),
    "--allow": _append("allow"),
    "--secret": _append("secrets", parse_secret),
    "--redirect": _store(
        "redirect", lambda text: _choice("--redirect", ("on", "off"))(text) == "on"
    ),
    "--uplink": _store("uplink"),
    "--resolver": _store("resolver", parse_resolver),
    "--upstream-ca": _store("upstream_ca"),
    "--audit": _store("audit"),
    "--audit-format": _store("audit_format", _choice("--audit-format", AUDIT_FORMATS)),
    "--status-fd": _store("status_fd", lambda text: parse_descriptor("--status-fd", text)),
    "--user": _store("user"),
    "--writable": _append("writable"),
    "--expose-socket": _append("expose_sockets"),
    "--keep-fd": _append("keep_fds", lambda text: parse_descriptor("--keep-fd", text)),
    "--limit": _put_limit,
    "--name": _store("name", parse_name),
    "--probe": _store("probe", _choice("--probe", PROBES)),
}
_FLAGS: Final = {
    "--read-only": "read_only",
    "--report": "report",
    "--dry-run": "dry_run",
    "--verbose": "verbose",
    "-v": "verbose",
}
INFORMATION: Final = ("--help", "-h", "--version")


def parse_command_line(words: Sequence[str]) -> Spec | str:
    """The Spec, or the one of INFORMATION that was asked for. Raises UsageError."""
    values: dict[str, Any] = {}
    position = 0
    while position < len(words):
        word = words[position]
        position += 1
        if word == "--":
            break
        if not word.startswith("-") or word == "-":
            position -= 1
            break
        if word in INFORMATION:
            return word
        option, separator, text = word.partition("=")
        if option in _FLAGS and not separator:
            values[_FLAGS[option]] = True
            continue
        if option in _FLAGS:
            raise UsageError(f"{option} takes no value", remedy=f"write {option} alone")
        if option in _LATER:
            raise UsageError(
                f"{option}: this version has no {_LATER[option]}", remedy="leave the option out"
            )
        if option not in _VALUES:
            raise UsageError(f"unknown option {option}", remedy=_suggestion(option))
        if not separator:
            if position == len(words):
                raise UsageError(f"{option} needs a value", remedy="see netns-run --help")
            text = words[position]
            position += 1
            if text == "--" or text.partition("=")[0] in (*_VALUES, *_FLAGS):
                raise UsageError(
                    f"{option} needs a value", remedy=f"{text} is an option of its own"
                )
        if not text or "\0" in text:
            raise UsageError(f"{option} needs a value", remedy="see netns-run --help")
        _VALUES[option](values, text)
    command = tuple(words[position:])
    if not command or not command[0]:
        raise UsageError(
            "no command to run", remedy="usage: netns-run [OPTIONS...] [--] CMD [ARGS...]"
        )
    return Spec(command=command, **values)


def _suggestion(option: str) -> str:
    from difflib import get_close_matches

    near = get_close_matches(option, [*_VALUES, *_FLAGS, *INFORMATION], 1, 0.75)
    return f"did you mean {near[0]}?" if near else "see netns-run --help"

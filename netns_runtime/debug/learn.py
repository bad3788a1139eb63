"""`netns-debug learn`: the smallest policy that would have allowed what a command or an audit did.

With a command it runs netns-run itself, in report mode and with an audit of its own, and ends with
the command's status once the policy is written; with `--from` nothing is run and status is 0. A
command that never ran leaves no policy. Errors are one NetnsError.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from netns_runtime.cli.text import say, say_json
from netns_runtime.debug.evidence import Evidence, evidence_of, read_audit
from netns_runtime.debug.learned import nameable, seen_of
from netns_runtime.debug.learnjudge import refusals_of, unused_of
from netns_runtime.debug.learnpolicy import comments_on, policy_for, text_of
from netns_runtime.debug.text import Page, shown
from netns_runtime.errors import EXIT_FAILED, UsageError, file_error

if TYPE_CHECKING:
    from collections.abc import Sequence

    from netns_runtime.debug.learned import Learned, Seen
    from netns_runtime.errors import NetnsError

USAGE: Final = """\
usage: netns-debug learn [OPTIONS] [netns-run's OPTIONS] -- CMD [ARGS...]
       netns-debug learn [OPTIONS] --from AUDIT [SANDBOX]

Writes the smallest readable policy that would have allowed what CMD did, or what an audit tells.
CMD runs with --report: what the policy given would refuse goes on. Requests are told apart where
they were seen: in plain HTTP, and in TLS that is terminated.

  -o FILE         write the policy there; else it goes to standard output after CMD's own
  --binaries      tie each part to the executables that used it
  --requests      terminate the TLS of CMD, so that its requests are seen; CMD has to trust the
                  sandbox's certificates, as most clients do by themselves
  --from AUDIT    learn from what --audit wrote, instead of running a command
  --diff POLICY   say what happened and POLICY refuses, and what of POLICY was not needed

Screened addresses, direct connects and fronting are refused while learning too; they are comments
at the end of the policy. The exit status is CMD's.
"""

_VALUES: Final = ("-o", "--from", "--diff")
_FLAGS: Final = ("--binaries", "--requests")
_OURS: Final = ("--audit", "--audit-format", "--report", "--dry-run")


def main(words: list[str], as_json: bool) -> int:
    """The exit status."""
    options, rest, command = _parsed(words)
    target = options.get("-o")
    if target is not None and os.path.lexists(target):
        raise UsageError(f"learn: -o {shown(target)} exists", remedy="name a file that does not")
    directory = _directory_of(target) if target is not None else -1
    against = _policy_at(options["--diff"]) if "--diff" in options else None
    status = 0
    if "--from" in options:
        evidence = _from_audit(options["--from"], rest, command)
    else:
        runner = "cli.run_inspecting" if "--requests" in options else "cli.run"
        status, evidence = _ran(runner, rest, command, quiet=as_json)
        if not evidence.events:
            return status or EXIT_FAILED
    learned = seen_of(evidence)
    if "--binaries" in options:
        learned = nameable(learned)
    groups = policy_for(learned, binaries="--binaries" in options)
    text = text_of(groups, _heading(learned, evidence), comments_on(learned))
    lost = _written(directory, target, text) if target is not None else None
    if lost is not None and not as_json:
        say(text.rstrip("\n"))
    missing, unused = [], []
    if against is not None:
        missing = refusals_of(against, learned.seen)
        unused = unused_of(against, learned.seen)
    if as_json:
        said: dict[str, Any] = {"policy": text, "status": status, "notes": list(evidence.notes)}
        if against is not None:
            told = [{**_fields_of(seen), "remedy": remedy} for seen, remedy in missing]
            said |= {"missing": told, "unused": unused}
        say_json(said)
    elif against is not None:
        say(_difference(options["--diff"], learned, missing, unused))
    elif target is None:
        say(text.rstrip("\n"))
    if lost is not None:
        raise lost
    return status


def _parsed(words: list[str]) -> tuple[dict[str, str], list[str], list[str]]:
    """Our options, what is not ours, and the command."""
    at = words.index("--") if "--" in words else len(words)
    ours, command = list(words[:at]), words[at + 1 :]
    options: dict[str, str] = {}
    rest: list[str] = []
    while ours:
        word = ours.pop(0)
        option, equals, value = word.partition("=")
        if option in _VALUES:
            if not equals and not ours:
                raise UsageError(f"learn: {option} needs a value", remedy=_HELP)
            options[option] = value if equals else ours.pop(0)
        elif word in _FLAGS:
            options[word] = ""
        else:
            rest.append(word)
    if "--from" not in options and not command:
        raise UsageError("learn: no command to run", remedy="learn -- CMD, or learn --from AUDIT")
    taken = next((word for word in rest if word.partition("=")[0] in _OURS), None)
    if taken is not None:
        raise UsageError(f"learn: {taken} is set by learn itself", remedy="leave it out")
    return options, rest, command


_HELP: Final = "see netns-debug learn --help"


def _policy_at(path: str) -> Any:
    from netns_runtime.policy.file import read_policy

    return read_policy(path)


def _from_audit(path: str, rest: Sequence[str], command: Sequence[str]) -> Evidence:
    if command:
        raise UsageError("learn: --from AUDIT and a command", remedy="give one of them")
    option = next((word for word in rest if word.startswith("-")), None)
    if option is not None:
        raise UsageError(f"learn: unknown option {shown(option)} with --from", remedy=_HELP)
    if len(rest) > 1:
        raise UsageError("learn: --from takes one SANDBOX", remedy=_HELP)
    evidence = read_audit(path)
    return evidence.only(rest[0]) if rest else evidence


def _ran(
    runner: str, options: Sequence[str], command: Sequence[str], *, quiet: bool
) -> tuple[int, Evidence]:
    """Run the command in report mode; its status, and what the audit says."""
    if os.geteuid() != 0:
        raise UsageError("needs root", remedy="run sudo netns-debug ..., or learn --from AUDIT")
    with tempfile.TemporaryFile() as audit:
        fd = audit.fileno()
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_APPEND)
        words = [sys.executable, "-I", "-m", f"netns_runtime.{runner}", *options]
        words += ["--report", "--audit", f"fd:{fd}", "--", *command]
        # Signals from the terminal are CMD's, and through it end us.
        for number in (signal.SIGINT, signal.SIGQUIT):
            signal.signal(number, lambda *_: None)
        out = sys.stderr.fileno() if quiet else None
        process = subprocess.Popen(words, pass_fds=[fd], stdout=out)
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda received, _: _pass_on(process, received))
        status = process.wait()
        audit.seek(0)
        evidence = evidence_of(audit, "what the command did")
    return (status if status >= 0 else 128 - status), evidence


def _pass_on(process: subprocess.Popen[bytes], number: int) -> None:
    with suppress(ProcessLookupError):
        process.send_signal(number)


def _heading(learned: Learned, evidence: Evidence) -> tuple[str, ...]:
    requests = sum(count for seen, count in learned.seen.items() if seen.request is not None)
    connections = sum(count for seen, count in learned.seen.items() if seen.request is None)
    what = shown(learned.command or evidence.source, 200)
    when = shown(str(evidence.events[0].get("time", ""))[:10], 10)
    said = [
        f"Learned by netns-debug learn on {when} from {what}:",
        f"{requests} requests, and {connections} connections and lookups without one.",
    ]
    return (*said, *(f"Note: {shown(note)}" for note in evidence.notes))


def _directory_of(target: str) -> int:
    """Where the policy goes to, held before CMD runs: CMD may put a link there meanwhile, or have
    put one there the last time, and root would write where that points."""
    parent = os.path.dirname(os.path.abspath(target))
    try:
        fd = os.open(parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise file_error(f"learn: -o {shown(target)}", error) from error
    if os.readlink(f"/proc/self/fd/{fd}") != parent:
        os.close(fd)
        raise UsageError(
            f"learn: -o {shown(target)}: a link is on the way to it",
            remedy="name it by its real path",
        )
    return fd


def _written(directory: int, target: str, text: str) -> NetnsError | None:
    """Why it could not be written, None where it was. Closes `directory`."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(os.path.basename(target), flags, 0o644, dir_fd=directory)
        with os.fdopen(fd, "w", encoding="ascii") as file:
            file.write(text)
    except OSError as error:
        return file_error(f"learn: -o {shown(target)}", error)
    finally:
        os.close(directory)
    return None


def _what(seen: Seen) -> str:
    where = shown(seen.host) + (f":{seen.port}" if seen.port is not None else "")
    if seen.port is None:
        return f"{where}  lookup"
    if seen.request is None:
        return f"{where}  connection"
    kind = "WebSocket " if seen.request.is_websocket else ""
    return f"{where}  {kind}{shown(seen.request.method)} {shown(seen.request.path, 300)}"


def _fields_of(seen: Seen) -> dict[str, Any]:
    said: dict[str, Any] = {"host": seen.host, "port": seen.port, "exe": seen.exe}
    if seen.request is not None:
        said |= {"method": seen.request.method, "path": seen.request.path}
        said["is_websocket"] = seen.request.is_websocket
    return {key: value for key, value in said.items() if value is not None}


def _difference(
    policy: str, learned: Learned, missing: list[tuple[Seen, str]], unused: list[str]
) -> str:
    page = Page()
    lines = [f"happened, and {shown(policy)} refuses it:" if missing else ""]
    for seen, remedy in missing:
        times = learned.seen.get(seen, 1)
        who = f" ({shown(seen.exe)})" if seen.exe else ""
        count = f", {times} times" if times > 1 else ""
        lines.append(page.paragraph(f"{_what(seen)}{who}{count}", indent="+ ", hanging="  "))
        lines.append(page.paragraph(shown(remedy), indent="    ", hanging="    "))
    lines.append(f"in {shown(policy)}, and was not needed:" if unused else "")
    lines += [page.paragraph(shown(line), indent="- ", hanging="  ") for line in unused]
    if not missing and not unused:
        return f"{shown(policy)} allows what happened, and all of it was needed"
    return "\n".join(line for line in lines if line)

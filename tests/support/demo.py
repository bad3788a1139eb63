"""The demonstration: real clients against an internet made for the occasion, one step at a time.

Each step prints what is run, what came back and whether that is what should happen. Ends with 0 if
every step was as it should be, else with 1; the lab goes either way.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.clients import trust
from tests.support.lab import Lab, LabError
from tests.support.run import PYTHON, Result, Running, netns_debug, netns_run

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

FETCH = "import sys, urllib.request as u; print(u.urlopen(sys.argv[1]).read().decode(), end='')"


def say(text: str = "") -> None:
    print(text, flush=True)


def indent(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())


class Demo:
    """Counts what went wrong."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.wrong = 0

    def show(
        self, options: Sequence[str], cmd: Sequence[str], env: Mapping[str, str] | None = None
    ) -> Result:
        shown = ["…" if w == FETCH else w for w in cmd]
        say(f"  $ netns-run {shlex.join(options)} -- {shlex.join(shown)}")
        result = netns_run(*options, cmd=cmd, lab=self.lab, env=trust(self.lab) | dict(env or {}))
        say(indent((result.stdout + result.stderr).rstrip()))
        return result

    def check(self, claim: str, true: object) -> None:
        say(f"  {'ok' if true else 'WRONG'}: {claim}")
        self.wrong += not true

    def allowed(self) -> None:
        say("\n1. A host that the policy allows, by http and by https, through the proxy")
        options = ("--allow", "web.lab.test")
        for client in (["curl", "-sS"], [PYTHON, "-c", FETCH]):
            for scheme in ("http", "https"):
                result = self.show(options, [*client, f"{scheme}://web.lab.test/"])
                self.check(
                    f"{client[0].rsplit('/')[-1]} got the page by {scheme}",
                    result.status == 0 and result.stdout.startswith("hello from web.lab.test"),
                )

    def unlisted(self) -> None:
        say("\n2. A host that the policy does not list")
        result = self.show(("--allow", "web.lab.test"), ["curl", "-sSi", "http://other.test/"])
        self.check("answered 403", result.stdout.startswith("HTTP/1.1 403"))
        self.check("it says what would allow it", "--allow other.test" in result.stdout)
        reached = [seen for seen in self.lab.requests_seen() if seen["host"] == "other.test"]
        self.check("nothing reached the host", not reached)

    def redirected(self) -> None:
        say("\n3. A client that ignores the proxy is carried all the same")
        command = ["curl", "-sS", "--noproxy", "*", "https://web.lab.test/"]
        result = self.show(("--allow", "web.lab.test"), command)
        self.check("it got the page", result.stdout.startswith("hello from web.lab.test"))
        entries = {line["entry"] for line in result.events("flow.decided", action="allow")}
        self.check("the audit says how: redirected", entries == {"redirected"})

    def secret(self) -> None:
        say("\n4. A token that CMD uses and never sees")
        value = "sk-demo-4d3b1c"
        self.lab.accept("OPENAI_API_KEY", value)
        ask = 'echo "$OPENAI_API_KEY"; curl -sSw "%{http_code}" -o /dev/null'
        ask += ' --noproxy "*" -H "Authorization: Bearer $OPENAI_API_KEY" '
        ask += "https://api.openai.com/v1/models"
        options = ("--preset", "openai", "--secret", "OPENAI_API_KEY")
        say(f"  (its variable OPENAI_API_KEY holds {value}, and the service takes nothing else)")
        result = self.show(options, ["sh", "-c", ask], {"OPENAI_API_KEY": value})
        self.check("CMD saw a placeholder", "openshell:resolve:env:OPENAI_API_KEY" in result.stdout)
        self.check("the service took the token: 200", result.stdout.endswith("200"))
        self.check("no output and no audit line has it", value not in result.told())

    def direct(self) -> None:
        say("\n5. The same with --redirect off, and to an address that no rule lists")
        options = ("--allow", "web.lab.test", "--redirect", "off")
        self.lab.forget()
        command = ["curl", "-sS", "--noproxy", "*", "http://192.0.2.10/"]
        result = self.show(options, command)
        self.check("refused at once (curl's exit status 7)", result.status == 7)
        refused = result.events("connect.refused")
        if refused:
            say("  the audit's line:")
            say(indent(json.dumps(refused[0])))
        self.check(
            "the audit names the process",
            len(refused) == 1 and refused[0].get("comm") == "curl",
        )
        self.check("nothing reached the host", not self.lab.connections_seen())

    def counted(self) -> None:
        say("\n6. The count, while the sandbox is running")
        times = 1009
        script = (
            "import socket, sys\n"
            f"for _ in range({times}): socket.socket().connect_ex(('192.0.2.10', 443))\n"
            "print('done', flush=True); sys.stdin.read()"
        )
        name = "demo"
        say(f"  $ netns-run --name {name} -- python3 -c '… {times} direct connects …'")
        options = ("--name", name, "--redirect", "off")
        cmd = [PYTHON, "-c", script]
        with Running(*options, cmd=cmd, lab=self.lab, stdin=subprocess.PIPE) as running:
            if running.process.stdout is not None:
                running.process.stdout.readline()
            say("  $ netns-debug stats")
            stats = netns_debug("stats")
            say(indent((stats.stdout + stats.stderr).rstrip()))
            self.check(
                f"{times} refused connects counted, none missing", str(times) in stats.stdout
            )
            result = running.wait(given=b"")
        counted = [line.get("count") for line in result.events("sandbox.exited")]
        self.check("the same in the audit at the end", counted == [times])

    def explained(self) -> None:
        say("\n7. Why, and a page about it")
        with tempfile.TemporaryDirectory() as directory:
            audit, page = f"{directory}/audit.jsonl", f"{directory}/page.html"
            options = ("--allow", "web.lab.test", "--audit", audit)
            self.show(options, ["curl", "-sSo", "/dev/null", "https://other.test/"])
            for words in (
                ("why", "other.test", "--from", audit),
                ("report", audit, "-o", page),
            ):
                say(f"  $ netns-debug {shlex.join(words)}")
                told = netns_debug(*words)
                say(indent((told.stdout + told.stderr).rstrip()))
                if words[0] == "why":
                    self.check("it says what would allow it", "--allow other.test" in told.stdout)
            text = Path(page).read_text(encoding="utf-8") if told.returncode == 0 else ""
            self.check("the page has the refusal and its remedy", "--allow other.test" in text)


def main() -> int:
    say("netns_runtime: what a sandbox lets out, and what it refuses")
    say("Everything below happens between network namespaces of this machine.")
    try:
        with Lab() as lab:
            demo = Demo(lab)
            for step in (
                *(demo.allowed, demo.unlisted, demo.redirected, demo.secret),
                *(demo.direct, demo.counted, demo.explained),
            ):
                step()
    except LabError as error:
        say(str(error))
        return 1
    say()
    say("every step was as it should be" if not demo.wrong else f"{demo.wrong} of them were WRONG")
    return 1 if demo.wrong else 0


if __name__ == "__main__":
    sys.exit(main())

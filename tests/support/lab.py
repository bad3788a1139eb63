"""The lab: an internet of our own for tests, in namespaces that vanish with it.

`Lab()` is a context manager. It starts `lab_process`, which makes an uplink namespace (what
`--uplink` names) and behind it the internet with servers and DNS (`world` says which). Nothing has
a name or a pin: when the lab, or a test that was killed, goes, the kernel removes it all.
`LabError` carries what the process said when it could not start.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Self

from tests.support import world

CHECKOUT = Path(__file__).resolve().parents[2]
# Not /tmp, which a sandbox has of its own, and not the checkout, which it may not write.
LABS = Path("/var/tmp")
PREFIX = "netns-runtime-lab-"
START_SECONDS = 20


class LabError(RuntimeError):
    """The lab could not start; the message is what its process said."""


def _remove_stale() -> None:
    for place in LABS.glob(f"{PREFIX}*"):
        maker = place.name.removeprefix(PREFIX).partition("-")[0]
        if not os.path.exists(f"/proc/{maker}") and place.owner() == "root":
            shutil.rmtree(place, ignore_errors=True)


class Lab:
    """An internet with an uplink to it. All attributes are set once it is entered.

    `uplink`: path of the namespace to dial from; `internet`: of the one that holds the servers.
    `resolver`: its DNS. `ca_file`: PEM of the CA that signed its servers. `directory`: readable
    inside a sandbox; `work`: writable inside too, as working directory. `www`: what /files/ serves.
    `hosts`: name to records.
    """

    uplink: str
    internet: str
    uplink_pid: int
    resolver = world.DNS_IPV4
    hosts = world.NAMES

    def __enter__(self) -> Self:
        _remove_stale()
        self.directory = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=LABS))
        self.directory.chmod(0o755)
        self.ca_file = self.directory / "ca.pem"
        self.www = self.directory / "www"
        self.work = self.directory / "work"
        self.work.mkdir()
        self.work.chmod(0o777)
        self._control, theirs = socket.socketpair()
        self._control.settimeout(START_SECONDS)
        with theirs, (self.directory / "stderr").open("w+") as said:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "tests.support.lab_process"),
                    *(str(theirs.fileno()), str(self.directory)),
                ],
                cwd=CHECKOUT,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
            )
        self._replies = self._control.makefile("rb")
        self.uplink_pid = int(self._reply_line() or self._give_up())
        self.uplink = f"/proc/{self.uplink_pid}/ns/net"
        self.internet = f"/proc/{self._process.pid}/ns/net"
        if self._reply_line() != b"ready\n":
            self._give_up()
        return self

    def __exit__(self, *_: object) -> None:
        self._replies.close()
        self._control.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _reply_line(self) -> bytes:
        try:
            return self._replies.readline()
        except OSError:
            return b""

    def _give_up(self) -> int:
        said = (self.directory / "stderr").read_text()
        self.__exit__()
        raise LabError(f"the lab did not start:\n{said}")

    def _ask(self, **request: Any) -> Any:
        self._control.sendall(json.dumps(request).encode() + b"\n")
        return json.loads(self._replies.readline())

    def run_args(self) -> list[str]:
        """The options of netns-run that point at this lab."""
        options = {"uplink": self.uplink, "resolver": self.resolver, "upstream-ca": self.ca_file}
        return [word for name, value in options.items() for word in (f"--{name}", str(value))]

    def requests_seen(self) -> list[dict[str, Any]]:
        """HTTP requests so far: method, target, host, headers, body, address, port, tls."""
        seen: list[dict[str, Any]] = self._ask(op="seen", kind="requests")
        return seen

    def connections_seen(self) -> list[tuple[str, int]]:
        """Where TCP connections came in: (server's address, port)."""
        return [(address, port) for address, port in self._ask(op="seen", kind="connections")]

    def queries_seen(self) -> list[tuple[str, str]]:
        """DNS questions so far: (name, type)."""
        return [(name, kind) for name, kind in self._ask(op="seen", kind="queries")]

    def transcript_of(self, who: str) -> list[str]:
        """What the lab's Slack or Discord did with the bot of that token, in order."""
        return [what for token, what in self._ask(op="seen", kind="transcripts") if token == who]

    def messages_seen(self) -> list[tuple[str, str]]:
        """What came to the echoing WebSockets: (where, text or bytes as latin-1)."""
        return [(where, text) for where, text in self._ask(op="seen", kind="messages")]

    def placeholders_seen(self) -> list[tuple[str, str]]:
        """Placeholders that arrived, however dressed: (where, what)."""
        return [(where, what) for where, what in self._ask(op="seen", kind="placeholders")]

    def accept(self, name: str, value: str) -> None:
        """Let the services under real names take this value as that secret."""
        self._ask(op="accept", name=name, value=value)

    def forget(self) -> None:
        """Empty what was seen."""
        self._ask(op="forget")

    def set_name(self, name: str, records: list[str] | list[list[str]] | None) -> None:
        """Give a name other records (see `world.NAMES`); None makes it unknown."""
        self._ask(op="name", name=name, records=records)

    def in_uplink(self, *command: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command in the uplink namespace, as somebody with no sandbox around them."""
        words = ["nsenter", f"--net={self.uplink}", *command]
        return subprocess.run(words, capture_output=True, text=True, check=False, **options)

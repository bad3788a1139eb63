"""`netns-debug capture` at work in a test, and tshark to read what it wrote."""

from __future__ import annotations

import json
import signal
import subprocess
from typing import TYPE_CHECKING, Any, Self

from tests.support.run import NETNS_DEBUG, environment

if TYPE_CHECKING:
    from pathlib import Path

PATIENCE = 40.0


class Capture:
    """A capture into `file`; `begun` waits until it takes packets."""

    def __init__(self, name: str, file: Path | str, *options: str) -> None:
        self.file = file
        words = [NETNS_DEBUG, "capture", name, "-o", str(file), "--json", *options]
        self.process = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
        )
        self.said: list[str] = []

    def __enter__(self) -> Self:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line)
            if line.startswith("{"):
                break
        assert self.said, "it ended at once"
        assert "began" in self.said[-1], "".join(self.said)
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()

    def end(self, *, interrupt: bool = False) -> dict[str, Any]:
        """The summary, once it has ended by itself or by Ctrl-C."""
        if interrupt:
            self.process.send_signal(signal.SIGINT)
        out, err = self.process.communicate(timeout=PATIENCE)
        assert self.process.returncode == 0, err
        assert err == ""
        summary: dict[str, Any] = json.loads(out)
        return summary


def tshark(file: Path | str, *words: str) -> str:
    """What tshark says of the file; fails where it complains of anything."""
    done = subprocess.run(
        ["tshark", "-n", "-r", str(file), *words],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        env=environment({"HOME": "/nonexistent", "LC_ALL": "C.UTF-8"}),
    )
    complaints = [line for line in done.stderr.splitlines() if "Running as user" not in line]
    assert (done.returncode, complaints) == (0, []), done.stderr
    return done.stdout


def fields(file: Path | str, wanted: str, *names: str) -> list[tuple[str, ...]]:
    """The fields of each packet that the display filter wants."""
    words = [word for name in names for word in ("-e", name)]
    text = tshark(file, "-Y", wanted, "-T", "fields", "-E", "separator=\x1f", *words)
    return [tuple(line.split("\x1f")) for line in text.splitlines()]


def capinfos(file: Path | str) -> str:
    """What capinfos says of the file, which it must find sound."""
    done = subprocess.run(
        ["capinfos", str(file)], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return done.stdout

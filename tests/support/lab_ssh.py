"""The lab's SSH server, for git over ssh: a process of its own, because asyncssh is asyncio's.

`ssh_server(lab)` is a context manager that starts it in the lab's internet and waits until it
listens. Nobody needs a password; what may be run is git-upload-pack below the lab's `www`. It runs
in the environment of the real clients and ends with its standard input.
"""

from __future__ import annotations

import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.support import world
from tests.support.lab import CHECKOUT, LabError
from tests.support.run import CLIENT_PYTHON

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.lab import Lab

SERVER = str(CHECKOUT / "tests/e2e/python/ssh_server.py")


@contextmanager
def ssh_server(lab: Lab) -> Iterator[None]:
    words = [CLIENT_PYTHON, SERVER, str(world.SSH_PORT), str(lab.www)]
    process = subprocess.Popen(
        ["nsenter", f"--net={lab.internet}", *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with process:
        assert process.stdout is not None
        if process.stdout.readline() != b"listening\n":
            _, said = process.communicate()
            raise LabError(f"the SSH server did not start: {said.decode()}")
        try:
            yield
        finally:
            process.terminate()

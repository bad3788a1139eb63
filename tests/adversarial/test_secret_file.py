"""The file a secret came from, which belongs to CMD's own user: inside, it says nothing."""

from __future__ import annotations

import os
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from netns_runtime.namespace.filesystem import View
from tests.support.enter import STRANGER, UID_0, run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from netns_runtime.namespace.filesystem_protect import Identity

VALUE = "open-sesame-1234"


@contextmanager
def home_with_token(identity: Identity) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as top:
        os.chmod(top, 0o755)
        token = Path(top) / "home" / "keys" / "token"
        token.parent.mkdir(parents=True)
        token.write_text(VALUE)
        token.chmod(0o600)
        for path in (token, token.parent, token.parent.parent):
            os.chown(path, identity.uid, identity.gid)
        yield token


@pytest.mark.parametrize("identity", [STRANGER, UID_0])
def test_the_file_cannot_be_read_moved_linked_or_written(identity: Identity) -> None:
    with home_with_token(identity) as token:
        keys, home = token.parent, token.parent.parent
        attacks = {
            "read": f"cat {token}",
            "write": f"echo evil > {token} && cat {token}",
            "link": f"ln {token} {home}/x && cat {home}/x",
            "symlink": f"ln -s {token} {home}/y && cat {home}/y",
            "move": f"mv {token} {home}/z; cat {home}/z",
            "move above": f"mv {keys} {home}/k; cat {home}/k/token",
            "move home": f"mv {home} {home}2; cat {home}2/keys/token",
            "through /proc": f"cat /proc/self/root{token} /proc/self/cwd{token}",
            "remove and undo": f"rm -f {token}; cat {token}",
        }
        view = View(hidden=(str(token),), writable=(str(home),), read_only=identity.uid == 0)
        for name, attack in attacks.items():
            outcome = run(["sh", "-c", attack], view=view, identity=identity)
            assert VALUE not in outcome.stdout + outcome.stderr, name
            assert token.read_text() == VALUE, name
        # Without the cover the first of them works, so the rest means something.
        bare = View(writable=(str(home),))
        assert run(["sh", "-c", attacks["read"]], view=bare, identity=identity).stdout == VALUE


def test_the_file_says_nothing_at_a_second_mount_of_its_place() -> None:
    with home_with_token(STRANGER) as token, tempfile.TemporaryDirectory(dir="/var/tmp") as other:
        os.chmod(other, 0o755)
        subprocess.run(["mount", "--bind", token.parent, other], check=True)
        try:
            read = ["cat", f"{other}/token"]
            assert run(read, view=View()).stdout == VALUE
            outcome = run(read, view=View(hidden=(str(token),)))
            assert VALUE not in outcome.stdout + outcome.stderr
        finally:
            subprocess.run(["umount", other], check=True)

"""What a guest is given: the project's files, a command and settings, as one tar archive.

The project is the working tree's tracked and new files, or a commit's, so that neither a virtual
environment nor a cache goes along. Modification times are kept old, as on an installed checkout.
Errors are StepError: not a checkout, or a commit that does not exist.
"""

from __future__ import annotations

import io
import os
import shlex
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.vm import cache
from tests.vm.provision import PROJECT

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

HERE: Final = Path(__file__).parent
GUEST_INIT: Final = HERE / "guest_init.sh"
_BLOCK: Final = 512
_CHECKOUT: Final = "run it in a git checkout"


@dataclass(frozen=True, slots=True)
class Job:
    """`command` is a shell script, run in /project. `settings` are read by guest_init.sh."""

    command: str
    settings: Mapping[str, str] = field(default_factory=dict)


def settings_text(settings: Mapping[str, str]) -> str:
    """Shell assignments."""
    known = {"CGROUPS": "pure", "WITHOUT_MODULES": "", **settings}
    return "".join(f"{name}={shlex.quote(value)}\n" for name, value in known.items())


def files_of(project: Path) -> list[str]:
    """Names of the working tree's files that git tracks or would."""
    words = ["git", "-C", str(project), "ls-files", "-z", "-co", "--exclude-standard"]
    listed = cache.run("git ls-files", words, remedy=_CHECKOUT)
    return [name for name in listed.split("\0") if name and (project / name).is_file()]


def export(project: Path, commit: str, target: Path) -> None:
    """Write a commit's files below `target`."""
    kept = target.with_name(target.name + ".tar")
    kept.parent.mkdir(parents=True, exist_ok=True)
    words = ["git", "-C", str(project), "archive", "-o", str(kept), commit]
    cache.run(f"git archive {commit}", words, remedy="name a commit of this repository")
    cache.remove(target)
    target.mkdir(parents=True)
    cache.run(
        f"commit {commit}", ["tar", "-x", "-f", kept, "-C", target], remedy="is the disk full?"
    )
    kept.unlink()


def _add(archive: tarfile.TarFile, name: str, data: bytes, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(data), mode
    archive.addfile(entry, io.BytesIO(data))


def write_job(path: Path, project: Path, names: Sequence[str], job: Job) -> None:
    """The archive, padded to whole sectors."""
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        for name in names:
            entry = archive.gettarinfo(project / name, f"{PROJECT}/{name}")
            entry.uid = entry.gid = 0
            entry.uname = entry.gname = "root"
            entry.mtime = 0
            if entry.isreg():
                with (project / name).open("rb") as file:
                    archive.addfile(entry, file)
            else:
                archive.addfile(entry)
        _add(archive, "job/init", GUEST_INIT.read_bytes(), 0o755)
        _add(archive, "job/settings", settings_text(job.settings).encode())
        _add(archive, "job/command", job.command.encode())
    size = path.stat().st_size
    os.truncate(path, size + -size % _BLOCK)


def tree_names(tree: Path) -> list[str]:
    """Every file and link below a directory."""
    found = (path for path in tree.rglob("*") if path.is_file() or path.is_symlink())
    return sorted(str(path.relative_to(tree)) for path in found)

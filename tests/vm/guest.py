"""Boots guests in QEMU and waits for their end, whatever that is.

Root and modules are images that a guest cannot change (snapshot=on); the job goes in and the
result comes out as tar on raw disks; one serial port carries the kernel's log, the other what the
job prints. The outcome is a value: ended with a status, panicked, over its time, or never started.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from netns_runtime.errors import StepError
from tests.vm import cache
from tests.vm.tools import QEMU

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from tests.vm.image import Boot

Kind = Literal["ended", "panicked", "timed out", "not started", "vanished"]
RESULT_BYTES: Final = 64 << 20
BOOT_SECONDS: Final = 120.0
_POLL: Final = 0.2
_TAIL: Final = 25
_PANIC: Final = re.compile(r"Kernel panic - not syncing.*|Unable to mount root fs.*")
_STATUS: Final = re.compile(r"^guest: status (\d+)\r?$", re.MULTILINE)
_STARTED: Final = re.compile(r"^guest: started (\S+)", re.MULTILINE)
_REFUSED: Final = re.compile(r"^guest: cannot start: (.*?)\r?$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Machine:
    """`command_line` is added to the kernel's; `seconds` is the limit for the whole run."""

    boot: Boot
    root: Path
    command_line: str = ""
    memory: int = 2048
    cores: int = 2
    seconds: float = 1800.0
    kvm: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """`status` is the job's if it ended. `why` is one line; `tail` the console's last lines."""

    kind: Kind
    status: int | None
    seconds: float
    why: str = ""
    tail: str = ""


def words_of(machine: Machine, place: Path) -> list[str]:
    """QEMU's command line; `place` has the job and gets the logs."""
    # A guest does not outlive whoever watches its time.
    words = ["setpriv", "--pdeathsig", "KILL", "nice", "-n", "15"]
    words += [QEMU, "-nodefaults", "-no-user-config", "-display", "none"]
    words += ["-no-reboot", "-m", str(machine.memory), "-smp", str(machine.cores)]
    accel = ["kvm", "host"] if machine.kvm else ["tcg,thread=multi", "max"]
    words += ["-accel", accel[0], "-cpu", accel[1]]
    words += ["-kernel", str(machine.boot.kernel), "-initrd", str(machine.boot.initramfs)]
    kernel = "console=ttyS0 panic=-1 oops=panic loglevel=5 rdinit=/init net.ifnames=0"
    words += ["-append", f"{kernel} {machine.command_line}".rstrip()]
    for name in ("console.log", "output.log"):
        words += ["-serial", f"file:{place / name}"]
    disks = {
        "root": (machine.root, "snapshot=on"),
        "modules": (machine.boot.modules, "snapshot=on"),
        "job": (place / "job.tar", "read-only=on"),
        "result": (place / "result.tar", "cache=unsafe"),
    }
    for serial, (path, how) in disks.items():
        drive = f"file={path},format=raw,if=none,id={serial},{how}"
        words += ["-drive", drive, "-device", f"virtio-blk-pci,drive={serial},serial={serial}"]
    return words


def read(path: Path) -> str:
    """A log so far, without what would move a terminal's cursor."""
    try:
        text = path.read_bytes().decode("utf-8", "replace")
    except FileNotFoundError:
        return ""
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|[^\n\t\x20-\x7e\u00a0-\uffff]", "", text)


def tail_of(text: str) -> str:
    return "\n".join(text.rstrip().splitlines()[-_TAIL:])


def judge(
    console: str, output: str, *, seconds: float, limit: float, lives: bool
) -> Outcome | None:
    """What the logs mean; None while the guest may still end well."""
    panic = _PANIC.search(console)
    status = _STATUS.search(output)
    refused = _REFUSED.search(output)
    tail = tail_of(console)
    if status is not None:
        return Outcome("ended", int(status[1]), seconds) if not lives else None
    if panic is not None:
        return Outcome("panicked", None, seconds, panic[0], tail)
    if refused is not None:
        return Outcome("not started", None, seconds, refused[1], tail)
    if _STARTED.search(output) is None and seconds > BOOT_SECONDS:
        return Outcome("not started", None, seconds, f"silent for {BOOT_SECONDS:.0f} s", tail)
    if seconds > limit:
        why = f"still running after {limit:.0f} s"
        return Outcome("timed out", None, seconds, why, f"{tail}\n{tail_of(output)}")
    if not lives:
        return Outcome("vanished", None, seconds, "QEMU ended before the guest did", tail)
    return None


@contextlib.contextmanager
def _started(machine: Machine, place: Path) -> Iterator[subprocess.Popen[bytes]]:
    for name in ("console.log", "output.log"):
        (place / name).unlink(missing_ok=True)
    with (place / "result.tar").open("wb") as file:
        file.truncate(RESULT_BYTES)
    with (place / "qemu.log").open("w") as said:
        try:
            process = subprocess.Popen(
                words_of(machine, place),
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                start_new_session=True,
                # Where a snapshot's changes are kept, and where cache.require_space has looked.
                env={**os.environ, "TMPDIR": str(place)},
            )
        except FileNotFoundError as error:
            raise StepError(
                f"{error.filename} is not installed", remedy="apt-get install qemu-system-x86"
            ) from error
    try:
        yield process
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@dataclass(slots=True)
class _Watched:
    """A guest that runs: how much of what it printed was told."""

    machine: Machine
    place: Path
    process: subprocess.Popen[bytes]
    began: float
    told: int = 0

    def look(self, tell: Callable[[str], None]) -> Outcome | None:
        """Tell what is new; the outcome once there is one."""
        lives = self.process.poll() is None
        output = read(self.place / "output.log")
        whole = len(output) if not lives else output.rfind("\n") + 1
        if whole > self.told:
            tell(output[self.told : whole])
            self.told = whole
        outcome = judge(
            read(self.place / "console.log"),
            output,
            seconds=time.monotonic() - self.began,
            limit=self.machine.seconds,
            lives=lives,
        )
        if outcome is None or outcome.kind != "vanished":
            return outcome
        why = tail_of(read(self.place / "qemu.log")).replace("\n", " ")
        return Outcome("vanished", None, outcome.seconds, why or outcome.why, outcome.tail)


def run_guests(
    machines: Sequence[tuple[Machine, Path]], tell: Callable[[str], None]
) -> list[Outcome]:
    """Boot them side by side; `tell` gets what their jobs print, as it comes.

    The outcomes are in the order of `machines`; every guest is gone at the end.
    """
    found: dict[Path, Outcome] = {}
    with contextlib.ExitStack() as stack:
        guests = [
            _Watched(
                machine, place, stack.enter_context(_started(machine, place)), time.monotonic()
            )
            for machine, place in machines
        ]
        while len(found) < len(guests):
            for guest in guests:
                if guest.place in found:
                    continue
                outcome = guest.look(tell)
                if outcome is not None:
                    found[guest.place] = outcome
                    _end(guest.process)
            time.sleep(_POLL)
    return [found[place] for _, place in machines]


def unpack_result(place: Path) -> None:
    """What the job left in /job/out, into `place`; nothing if it never got that far."""
    result = place / "result.tar"
    with result.open("rb") as file:
        is_empty = not file.read(512).strip(b"\0")
    if not is_empty:
        words = ["tar", "-x", "--no-same-owner", "-f", str(result), "-C", str(place)]
        cache.run("result of the guest", words, remedy="is the disk full?")
    result.unlink()

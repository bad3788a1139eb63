"""`scripts/test-vagrant`: brings the Vagrant machine up with a box built here, and uses it.

libvirt's daemons, the machine and its network live in namespaces of this run and end with it, as do
the machine's disk and Vagrant's own files, below one directory of the cache. Ends with 0 when every
step did what vagrant/README.md says, with 1 and the step's output when one did not, and with 125
and one line when something is missing here.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from netns_runtime.errors import StepError
from tests.vm import box, cache, ending, tools

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

CHECKOUT: Final = Path(__file__).resolve().parents[2]
WORLD: Final = Path(__file__).with_name("vagrant_world.sh")
_PLUGIN: Final = "/usr/share/rubygems-integration/all/specifications/vagrant-libvirt-*.gemspec"
_PROGRAMS: Final = (
    "vagrant",
    "libvirtd",
    "virsh",
    "dnsmasq",
    "qemu-img",
    "rsync",
    "ssh",
    tools.QEMU,
)
_FAILED: Final = 1
_TESTS: Final = ("tests/kernel/test_gateway.py", "tests/e2e/test_command_line.py")
_NAMESPACES: Final = (
    "--mount",
    "--net",
    "--ipc",
    "--pid",
    "--fork",
    "--kill-child",
    "--mount-proc",
)
_STRAY: Final = "/project/removed-from-the-checkout"


@dataclass(frozen=True, slots=True)
class Step:
    """A command that must end with `status`; `says` is in what it prints."""

    name: str
    words: Sequence[str]
    status: int = 0
    says: str = ""


def in_machine(command: str) -> tuple[str, ...]:
    return ("vagrant", "ssh", "-c", command)


def steps_of(tests: Sequence[str]) -> list[Step]:
    """What vagrant/README.md tells a person to type, and what it says about the result."""
    suite = " ".join(("sudo", "./scripts/test", *tests))
    return [
        Step("validate", ("vagrant", "validate"), says="validated successfully"),
        Step("up", ("vagrant", "up")),
        Step("the kernel", in_machine("uname -r && cat /etc/debian_version")),
        Step("an exit status", in_machine("exit 7"), status=7),
        Step("the checkout is read-only", in_machine("! (: >>/checkout/README.md)"), says="denied"),
        Step("a file that was removed here", in_machine(f"sudo touch {_STRAY}")),
        Step("provision again", ("vagrant", "provision")),
        Step("is removed there", in_machine(f"test ! -e {_STRAY}")),
        Step("the tests", in_machine(f"cd /project && {suite}"), says=" passed"),
        Step("destroy", ("vagrant", "destroy", "-f")),
    ]


def environment_of(world: Path, made: Path, given: Mapping[str, str]) -> dict[str, str]:
    """Vagrant's own files go below `world`; nothing is asked of its makers' servers."""
    kept = {name: value for name, value in given.items() if not name.startswith("VAGRANT_")}
    return kept | {
        "NETNS_BOX": str(made),
        "VAGRANT_HOME": str(world / "home"),
        "VAGRANT_DOTFILE_PATH": str(world / "machines"),
        "VAGRANT_CWD": str(CHECKOUT / "vagrant"),
        "VAGRANT_DEFAULT_PROVIDER": "libvirt",
        "VAGRANT_CHECKPOINT_DISABLE": "1",
    }


def run_steps(steps: Sequence[Step]) -> int:
    """Inside the namespaces: every step in turn until one is not as it should be."""
    for step in steps:
        began = time.monotonic()
        said = []
        with subprocess.Popen(
            step.words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as process:
            for line in process.stdout or ():
                # Of a bar that is drawn again and again.
                if "Progress: " in line:
                    continue
                said.append(line)
                sys.stdout.write(f"    {line}")
                sys.stdout.flush()
        is_right = process.returncode == step.status and step.says in "".join(said)
        verdict = "ok" if is_right else f"status {process.returncode}, not as expected"
        sys.stdout.write(f"{step.name}: {verdict} ({time.monotonic() - began:.0f} s)\n")
        sys.stdout.flush()
        if not is_right:
            return _FAILED
    return 0


def validate_all(given: Mapping[str, str]) -> None:
    """Every box that the Vagrantfile names, on every machine that it knows. Raises StepError."""
    for name in ("ubuntu", "debian12", "debian13"):
        words = ["vagrant", "validate", "--ignore-provider"]
        remedy = "mend vagrant/Vagrantfile"
        cache.run(f"validate {name}", words, remedy=remedy, env={**given, "NETNS_BOX": name})


def _require() -> None:
    tools.require(_PROGRAMS)
    if not list(Path("/").glob(_PLUGIN.lstrip("/"))):
        tools.install(["vagrant-libvirt"])


def _run(arguments: Sequence[str]) -> int:
    parser = ending.Parser(prog="scripts/test-vagrant", description=__doc__)
    parser.add_argument("name", nargs="?", default="debian12", choices=tuple(box.DEBIAN))
    parser.add_argument("--cloud", action="store_true", help="Debian's kernel for clouds")
    parser.add_argument("--all", action="store_true", help="the whole suite: hours where emulated")
    parser.add_argument(
        "--tests",
        action="append",
        default=[],
        metavar="PATH",
        help=f"what scripts/test runs there; repeatable; default: {' '.join(_TESTS)}",
    )
    options = parser.parse_args(arguments)
    if os.geteuid() != 0:
        raise StepError("namespaces for libvirt are made by root", remedy="run it again with sudo")
    place = cache.open_cache()
    with cache.only_one(place):
        _require()
        made = box.build_box(place, box.Choice(options.name, options.cloud))
    world = place / "vagrant"
    with cache.only_one(place, "guest"):
        cache.remove(world)
        cache.require_space(place, 8192, "the machine and its box")
        world.mkdir()
        environment = environment_of(world, made, os.environ)
        try:
            validate_all(environment)
            tests = [] if options.all else (options.tests or _TESTS)
            words = [
                "setpriv",
                "--pdeathsig",
                "KILL",
                "unshare",
                *_NAMESPACES,
                "sh",
                str(WORLD),
                str(world),
            ]
            words += [sys.executable, "-m", "tests.vm.vagrant", "--inside", *tests]
            return subprocess.run(words, env=environment, cwd=CHECKOUT, check=False).returncode
        finally:
            cache.remove(world)


def main(arguments: Sequence[str]) -> int:
    if arguments[:1] == ["--inside"]:
        return run_steps(steps_of(arguments[1:]))
    return ending.ended("test-vagrant", lambda: _run(arguments))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

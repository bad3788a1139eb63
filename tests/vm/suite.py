"""What runs in a guest: rows of the matrix, their tests, and what emulation cannot show.

A row is a kernel, a userland and what is taken from them or added. A plain row runs tests/kernel
and a smoke part of tests/e2e; a row that lacks something runs the claims about that lack as well,
or only those where nothing else can work. Pure tables.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from netns_runtime.errors import StepError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

KERNEL_TESTS: Final = ("tests/kernel",)
_E2E: Final = {
    "command_line": (
        "ends_as_the_command_does",
        "streams_are_the_command_s_own",
        "passes_signals_to_the_command",
        "status_fd_tells_started_and_exited",
    ),
    "direct_connects": (
        "counts_every_refused_connect",
        "refuses_sendto_with_an_errno",
        "names_the_process_of_a_refused_connect",
        "nft_alone_still_writes_how_many_were_refused",
        "loopback_inside_is_the_sandbox_own",
    ),
    "explicit_clients": (
        "names_the_process_that_opened_the_flow",
        "carries_ipv6_authorities",
        "clones_with_git_over_https",
    ),
    "debug_trace": ("kernel_names_who_sends_what_no_hook_sees",),
    "denied_bpf": (
        "refuses_and_counts_exactly_by_nft_alone",
        "carries_what_is_allowed_and_nothing_else",
    ),
    "names": (
        "a_name_means_the_same_in_any_spelling",
        "an_address_leads_back_to_its_name",
        "a_server_of_its_own_is_reached_by_the_name_localhost",
    ),
}
SMOKE: Final = tuple(
    f"tests/e2e/test_{name}.py::test_{claim}" for name, claims in _E2E.items() for claim in claims
)
"""One of each kind, with the clients that a minimal Debian has."""
ROWS_DIRECTORY: Final = "tests/vm/rows"
END_TO_END: Final = (*SMOKE, f"{ROWS_DIRECTORY}/plain.py")
ALL: Final = (*KERNEL_TESTS, *END_TO_END)
_MOST_GUESTS: Final = 4
SLOW: Final = {
    "test_a_later_launch_imports_no_compiler_and_is_quick": "claims 5 ms",
    "test_a_background_command_that_reads_stops_until_it_is_brought_forward": "waits 1 s",
    "test_a_flood_of_refusals_costs_no_count": "claims that a flood ends in time",
}
"""Claims about time, which say nothing about a kernel on a processor that is emulated."""


@dataclass(frozen=True, slots=True)
class Lack:
    """Something that a machine may lack, or have besides. `tests` are the claims about it.

    `settings` go to guest_init.sh, `command_line` to the kernel, `packages` into the root file
    system; `wrapper` starts pytest. `also` is what must pass there besides.
    """

    name: str
    tells: str
    tests: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)
    command_line: str = ""
    wrapper: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    also: tuple[str, ...] = ()


LACKS: Final = {
    lack.name: lack
    for lack in (
        Lack(
            "hybrid-cgroups",
            "cgroup v1 and v2 side by side",
            "",
            {"CGROUPS": "hybrid"},
            also=ALL,
        ),
        Lack("no-cgroup2", "cgroup v1 alone", "no_cgroup2.py", {"CGROUPS": "version1"}),
        Lack(
            "no-bpf",
            "bpf(2) is denied",
            "no_bpf.py",
            wrapper=(".venv/bin/python", "tests/vm/rows/deny_bpf.py", "EPERM"),
        ),
        Lack(
            "no-tproxy",
            "no nft_tproxy module",
            "no_tproxy.py",
            {"WITHOUT_MODULES": "nft_tproxy nf_tproxy_ipv4 nf_tproxy_ipv6"},
        ),
        Lack(
            "no-modules",
            "neither veth nor nf_tables nor nft_tproxy can be loaded",
            "no_modules.py",
            {"WITHOUT_MODULES": "veth nf_tables nft_reject_inet nft_tproxy"},
        ),
        Lack("no-ipv6", "ipv6.disable=1", "no_ipv6.py", command_line="ipv6.disable=1"),
        Lack(
            "with-headers",
            "kernel headers for bcc are installed",
            "with_headers.py",
            packages=("linux-headers-amd64",),
        ),
        Lack(
            "lockdown",
            "lockdown=confidentiality",
            "lockdown.py",
            command_line="lockdown=confidentiality",
        ),
        Lack(
            "apparmor-userns",
            "AppArmor denies user namespaces",
            "apparmor_userns.py",
            command_line="apparmor=1 security=apparmor",
            wrapper=(".venv/bin/python", "tests/vm/rows/apparmor_restrict_userns.py"),
            packages=("apparmor", "apparmor-profiles"),
            also=END_TO_END,
        ),
    )
}


def lack_of(name: str) -> Lack:
    """By name. Raises StepError with the names there are."""
    found = LACKS.get(name)
    if found is None:
        raise StepError(f"fallback {name!r}: unknown", remedy=f"one of: {' '.join(LACKS)}")
    return found


@dataclass(frozen=True, slots=True)
class Row:
    """One guest to boot. `kernel` is a name for kernels.choose."""

    kernel: str
    lack: Lack | None = None

    @property
    def name(self) -> str:
        return f"{self.kernel} {self.lack.name}" if self.lack else self.kernel


def selection_of(row: Row, *, smoke: bool = True) -> list[str]:
    """What pytest is asked to collect."""
    chosen = [f"{ROWS_DIRECTORY}/{row.lack.tests}"] if row.lack and row.lack.tests else []
    also = row.lack.also if row.lack else ALL
    return chosen + [test for test in also if smoke or test in KERNEL_TESTS]


def guests_for(tests: Sequence[str], cores: int) -> int:
    """How many guests share these tests: a few claims are not worth another boot."""
    return max(1, min(cores, _MOST_GUESTS)) if set(KERNEL_TESTS) & set(tests) else 1


def command_of(row: Row, tests: Sequence[str], *, kvm: bool, share: str = "") -> str:
    """The script that a guest runs; its status is pytest's. `share` is `K/N`, all if empty."""
    left_out = () if kvm else SLOW
    words = [".venv/bin/python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short"]
    words += ["--junitxml=/job/out/junit.xml", "-o", "junit_suite_name=netns-runtime"]
    if left_out:
        words += ["-k", " and ".join(f"not {name}" for name in left_out)]
    if share:
        words += ["-p", "tests.vm.share", "--share", share]
    words += tests
    wrapper = row.lack.wrapper if row.lack else ()
    lines = [
        "export NETNS_MUST_WORK=1",
        f"export NETNS_VM_ROW={shlex.quote(row.lack.name if row.lack else 'plain')}",
        "scripts/bootstrap run || exit 125",
        # The first launch compiles the probe, which takes longer here than a test may wait.
        shlex.join([*wrapper, "./netns-run", "true"]) + " >/dev/null 2>&1",
        shlex.join(
            [*wrapper, ".venv/bin/python", "tests/vm/guest_facts.py", "/job/out/facts.json"]
        ),
        shlex.join([*wrapper, *words]),
    ]
    return "\n".join([*lines, ""])

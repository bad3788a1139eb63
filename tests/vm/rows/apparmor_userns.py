"""User namespaces are restricted, as on Ubuntu 24.04 and harder: netns-run never makes one.

Ubuntu's sysctl is a patch of Ubuntu's. What every kernel here has is switched on instead: AppArmor
with a profile around all tests that denies `userns`, root included (apparmor_restrict_userns.py),
and no user namespace left to make (user.max_user_namespaces=0). Both are stronger than Ubuntu's.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support import world
from tests.support.run import NETNS_RUN, PYTHON, netns_run
from tests.vm.rows.apparmor_restrict_userns import (
    BWRAP_PROFILE,
    PROFILE,
    UBUNTU_SYSCTL,
    load_profile,
    unload_profile,
)
from tests.vm.rows.claims import checks, connects

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.lab import Lab

LIMIT = Path("/proc/sys/user/max_user_namespaces")
MAKES_ONE = ["unshare", "--user", "true"]
AS_BEFORE = ["aa-exec", "--profile", "unconfined", "--"]
USERS = {"root": ["--user", "0"], "the caller": [], "nobody": ["--user", "nobody"]}


@pytest.fixture
def none_left() -> Iterator[None]:
    before = LIMIT.read_text(encoding="ascii")
    LIMIT.write_text("0", encoding="ascii")
    yield
    LIMIT.write_text(before, encoding="ascii")


def test_apparmor_denies_user_namespaces_to_these_tests_and_their_children() -> None:
    enabled = Path("/sys/module/apparmor/parameters/enabled").read_text(encoding="ascii")
    assert enabled.strip() == "Y"
    current = Path("/proc/self/attr/current").read_text(encoding="ascii")
    assert current.strip() == f"{PROFILE} (enforce)"
    if UBUNTU_SYSCTL.exists():
        assert UBUNTU_SYSCTL.read_text(encoding="ascii").strip() == "1"
    for user in ("0", "65534"):
        words = ["setpriv", "--reuid", user, "--clear-groups", "--regid", user, *MAKES_ONE]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode != 0
        assert "Permission denied" in done.stderr, done.stderr


@pytest.mark.parametrize("user", USERS)
def test_a_sandbox_starts_and_its_command_makes_no_user_namespace(user: str) -> None:
    script = "id -u; unshare --user true 2>&1 || echo refused"
    result = netns_run(*USERS[user], cmd=["sh", "-c", script])
    assert result.status == 0, result.told()
    uid, said, last = result.stdout.splitlines()
    assert uid == ("65534" if user == "nobody" else "0")
    # From the filter, before AppArmor is asked, which would say EACCES.
    assert "Operation not permitted" in said
    assert last == "refused"


@pytest.mark.usefixtures("none_left")
@pytest.mark.parametrize("user", USERS)
def test_a_sandbox_starts_where_the_machine_allows_no_user_namespace_at_all(user: str) -> None:
    assert subprocess.run(MAKES_ONE, capture_output=True, check=False).returncode != 0
    result = netns_run(*USERS[user], cmd=["echo", "ran"])
    assert (result.status, result.stdout, result.stderr) == (0, "ran\n", ""), result.told()


def test_what_is_refused_is_counted_and_its_process_named() -> None:
    names, result = connects("--user", "nobody", to=[(world.WEB_IPV4, 80)] * 5)
    assert names == ["ECONNREFUSED"] * 5
    assert result.event("sandbox.exited")["counted_bpf"] == 5
    assert result.events("connect.refused")[0]["exe"].startswith("/usr/bin/python3")


def test_the_proxy_process_gives_up_its_privileges_all_the_same(lab: Lab) -> None:
    script = "import urllib.request as u; print(u.urlopen('http://web.lab.test/').status)"
    result = netns_run(
        *("--user", "nobody", "--allow", "web.lab.test"),
        cmd=[PYTHON, "-c", script],
        lab=lab,
        timeout=60,
    )
    assert (result.status, result.stdout) == (0, "200\n"), result.told()


@pytest.fixture
def bubblewrap_is_confined() -> Iterator[None]:
    load_profile(BWRAP_PROFILE)
    yield
    unload_profile(BWRAP_PROFILE)


@pytest.mark.usefixtures("bubblewrap_is_confined")
@pytest.mark.parametrize("user", USERS)
def test_a_sandbox_starts_where_the_distribution_confines_bubblewrap(user: str) -> None:
    shows = ["cat", "/proc/self/attr/current"]
    bare = [*AS_BEFORE, "sh", "-c", 'exec "$@"', "sh", "bwrap", "--dev-bind", "/", "/", *shows]
    assert (
        "unpriv_bwrap" in subprocess.run(bare, stdout=subprocess.PIPE, check=True).stdout.decode()
    )
    result = netns_run(*USERS[user], cmd=shows, launcher=[*AS_BEFORE, NETNS_RUN])
    assert (result.status, result.stdout) == (0, "unconfined\n"), result.told()


@pytest.mark.usefixtures("bubblewrap_is_confined")
def test_a_netns_run_that_is_confined_itself_does_not_get_out() -> None:
    result = netns_run(cmd=["echo", "ran"])
    assert (result.status, result.stdout) == (125, ""), result.told()
    assert len(result.stderr.splitlines()) == 1


def test_doctor_misses_nothing() -> None:
    assert [name for name, check in checks().items() if not check["is_present"]] == []

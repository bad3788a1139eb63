"""What CMD sees in place of the host's files about names, and what it may not write."""

from __future__ import annotations

from typing import TYPE_CHECKING

from netns_runtime.entering import name_files
from netns_runtime.namespace.enter import own_hostname

if TYPE_CHECKING:
    from pathlib import Path


def contents(path: Path) -> dict[str, str]:
    found = {}
    for file in name_files(path, "box"):
        assert isinstance(file.content, bytes)
        found[file.destinations[0]] = file.content.decode("ascii")
    return found


def test_names_are_asked_of_files_and_the_policy_resolver_alone(tmp_path: Path) -> None:
    host = tmp_path / "nsswitch.conf"
    host.write_text(
        "passwd: files systemd\n"
        "hosts: mymachines resolve [!UNAVAIL=return] files dns\n"
        "networks: files\n",
        encoding="ascii",
    )
    found = contents(host)
    assert found["/etc/resolv.conf"] == "nameserver 10.200.0.1\n"
    assert (
        found["/etc/nsswitch.conf"] == "passwd: files systemd\nnetworks: files\nhosts: files dns\n"
    )
    assert "127.0.0.1 localhost\n" in found["/etc/hosts"]
    assert "10.200.0.2 box\n" in found["/etc/hosts"]


def test_a_host_name_with_a_domain_gives_no_search_domain(tmp_path: Path) -> None:
    hosts = name_files(tmp_path / "missing", "box.corp.example")[1].content
    assert isinstance(hosts, bytes)
    assert b"10.200.0.2 box.corp.example box\n" in hosts
    assert own_hostname("box.corp.example") == ("--unshare-uts", "--hostname", "box")
    assert own_hostname("box") == ()


def test_a_host_without_nsswitch_gets_one_that_knows_files(tmp_path: Path) -> None:
    assert "hosts: files dns\n" in contents(tmp_path / "missing")["/etc/nsswitch.conf"]

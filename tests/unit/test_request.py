"""What a Spec names on this machine, and the one line for what is wrong with it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from netns_runtime import request
from netns_runtime.errors import UsageError
from netns_runtime.policy import Policy
from netns_runtime.spec import Spec

if TYPE_CHECKING:
    from pathlib import Path


def spec(**fields: object) -> Spec:
    return Spec(command=("true",), **fields)  # type: ignore[arg-type]


def test_the_caller_of_sudo_is_the_user() -> None:
    user = request.resolve_user(None, {"SUDO_UID": "12345", "SUDO_GID": "54321"})
    assert (user.uid, user.gid, user.entry, user.is_sudo) == (12345, 54321, None, True)


def test_without_sudo_the_user_is_who_runs_it() -> None:
    user = request.resolve_user(None, {})
    assert (user.uid, user.is_sudo) == (os.getuid(), False)


def test_a_named_user_has_its_groups() -> None:
    user = request.resolve_user("root", {"SUDO_UID": "12345"})
    assert user.uid == 0
    assert 0 in user.groups


@pytest.mark.parametrize("name", ["no-such-user-here", "4294967295", "-1", "1.5"])
def test_a_user_that_does_not_exist_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="--user"):
        request.resolve_user(name, {})


@pytest.mark.parametrize("value", ["", "x", "-1", "0x1", "١"])  # noqa: RUF001 - not ASCII
def test_a_strange_sudo_uid_is_no_sudo(value: str) -> None:
    assert not request.resolve_user(None, {"SUDO_UID": value}).is_sudo


def test_uid_zero_is_read_only_unless_everything_is_writable() -> None:
    root = request.resolve_user("root", {})
    other = request.resolve_user("12345", {})
    cases = {
        (root, ()): True,
        (root, ("/srv",)): True,
        (root, ("/",)): False,
        (other, ()): False,
    }
    for (user, writable), expected in cases.items():
        made = request.Request(spec(writable=writable), user, Policy(), None, None, None, (), "/")
        assert made.is_read_only is expected


@pytest.mark.parametrize(
    ("text", "servers"),
    [
        ("nameserver 192.0.2.1\n", ("192.0.2.1",)),
        ("# nameserver 192.0.2.9\nnameserver\t2001:db8::1 # x\n", ("2001:db8::1",)),
        ("nameserver 192.0.2.1\nnameserver 192.0.2.1\noptions edns0\n", ("192.0.2.1",)),
        ("search example.test\n", ()),
    ],
)
def test_name_servers_are_read_from_resolv_conf(text: str, servers: tuple[str, ...]) -> None:
    assert request.parse_resolv_conf(text) == tuple((server, 53) for server in servers)


def test_with_an_uplink_the_host_s_resolver_is_never_asked() -> None:
    assert request.nameservers_for(spec(uplink="lab", resolver=("192.0.2.53", 53))) == (
        ("192.0.2.53", 53),
    )
    assert request.nameservers_for(spec()) == ()


@pytest.mark.parametrize("path", ["/", "/nowhere.yaml", "/dev/zero"])
def test_a_policy_that_is_no_file_is_one_line(path: str) -> None:
    with pytest.raises(UsageError, match="--policy"):
        request.load_policies(spec(policies=(path,)))


@pytest.mark.parametrize(
    "fields",
    [
        {"status_fd": 990},
        {"keep_fds": (991,)},
        {"expose_sockets": ("/nowhere",)},
        {"expose_sockets": ("/etc/passwd",)},
        {"writable": ("/nowhere",)},
        {"policies": ("/nowhere.yaml",)},
        {"allow": ("a b",)},
        {"upstream_ca": "/nowhere.pem"},
        {"uplink": "/nowhere", "resolver": ("192.0.2.1", 53)},
        {"audit": "/nowhere/audit.jsonl"},
        {"audit": "fd:992"},
        {"audit": "/"},
    ],
)
def test_whatever_cannot_be_had_is_one_line_before_anything_is_made(
    fields: dict[str, object],
) -> None:
    with pytest.raises(UsageError) as caught, request.resolve(spec(**fields), {}):
        pass
    assert "\n" not in str(caught.value)


def test_a_link_that_cmd_could_replace_is_told_without_a_stray_space(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("x", encoding="ascii")
    (tmp_path / "lnk").symlink_to(tmp_path / "target")
    os.chmod(tmp_path, 0o777)
    with request.resolve(spec(user="65534"), {}) as found, pytest.raises(UsageError) as caught:
        found.real_path("--secret T=file:", str(tmp_path / "lnk"))
    assert str(caught.value).startswith(f"--secret T=file:{tmp_path}/lnk: CMD could replace")


def test_an_audit_behind_a_link_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("precious", encoding="ascii")
    link = tmp_path / "audit.jsonl"
    link.symlink_to(target)
    with pytest.raises(UsageError, match="not a link"), request.resolve(spec(audit=str(link)), {}):
        pass
    assert target.read_text(encoding="ascii") == "precious"

"""--secret from each source, what CMD has of it, and the endpoint where a value may be read."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.support.run import Running, netns_debug, netns_run

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.run import Result

CURL = "/usr/bin/curl"
ENV = """\
version: 1
secrets:
  TOKEN: {expose: env}
"""
BOUND = """\
version: 1
network_policies:
  api:
    endpoints: [{host: api.test, port: 443, protocol: rest, access: full}]
secrets:
  TOKEN:
    hosts: [api.test]
    slots: [{header: authorization}]
"""
ENDPOINT = f"""\
{BOUND}
    expose: endpoint
    binaries: [{{path: {CURL}}}]
"""
SHOW = "env; cat /proc/self/environ /proc/$PPID/environ; ls -l /proc/self/fd"
ASK = f"{CURL} -sS -m 5 -w '%{{http_code}}' -H \"Authorization: Bearer $NETNS_SECRETS_TOKEN\" "
PYTHON = """\
import os, urllib.request, urllib.error
request = urllib.request.Request(os.environ["NETNS_SECRETS_URL"] + "/TOKEN")
request.add_header("Authorization", "Bearer " + os.environ["NETNS_SECRETS_TOKEN"])
try:
    print(urllib.request.urlopen(request, timeout=5).read())
except urllib.error.HTTPError as error:
    print(error.code, error.read().decode())
"""


def value() -> str:
    return f"sesame-{secrets.token_hex(12)}"


def policy(tmp_path: Path, text: str) -> str:
    path = tmp_path / "policy.yaml"
    path.write_text(text)
    return str(path)


def shows(result: Result) -> str:
    return result.stdout + result.stderr + json.dumps(result.audit)


@pytest.mark.parametrize("source", ["env", "other", "file", "fd", "stdin"])
def test_cmd_has_the_placeholder_and_nothing_else(source: str, tmp_path: Path) -> None:
    token = value()
    file = tmp_path / "token"
    file.write_text(token + "\n")
    fd = os.open(file, os.O_RDONLY) if source == "fd" else -1
    how = {"env": "", "other": "=env:OTHER", "file": f"=file:{file}", "fd": f"=fd:{fd}"}
    words = ["--policy", policy(tmp_path, BOUND), "--secret", "TOKEN" + how.get(source, "=fd:0")]
    result = netns_run(
        *words,
        cmd=["sh", "-c", f"{SHOW}; cat {file if source in ('file', 'fd') else '/dev/null'}"],
        env={"env": {"TOKEN": token}, "other": {"OTHER": token}}.get(source, {}),
        input=token + "\n" if source == "stdin" else None,
        pass_fds=[fd] if fd >= 0 else [],
    )
    if fd >= 0:
        os.close(fd)
    assert "TOKEN=openshell:resolve:env:TOKEN" in result.stdout, result.told()
    assert token not in shows(result)


def test_expose_env_gives_cmd_the_value_and_the_audit_none(tmp_path: Path) -> None:
    token = value()
    result = netns_run(
        *("--policy", policy(tmp_path, ENV), "--secret", "TOKEN"),
        cmd=["sh", "-c", "echo $TOKEN"],
        env={"TOKEN": token},
    )
    assert result.stdout == token + "\n", result.told()
    assert token not in json.dumps(result.audit)


def test_a_listed_executable_reads_at_the_endpoint_and_others_do_not(tmp_path: Path) -> None:
    token = value()
    script = f"{ASK} $NETNS_SECRETS_URL/TOKEN; echo; {ASK} --noproxy '*' $NETNS_SECRETS_URL/TOKEN"
    words = ["--policy", policy(tmp_path, ENDPOINT), "--secret", "TOKEN"]
    result = netns_run(*words, cmd=["sh", "-c", script], env={"TOKEN": token})
    assert result.stdout.split() == [token + "200", token + "200"], result.told()
    reads = result.events("secret.substituted", secret="TOKEN", slot="endpoint", exe=CURL)
    assert len(reads) == 2
    other = netns_run(*words, cmd=["/usr/bin/python3", "-c", PYTHON], env={"TOKEN": token})
    assert other.stdout.startswith("403 "), other.told()
    assert token not in shows(other)
    other.event("secret.withheld", secret="TOKEN", slot="endpoint", action="refuse")


def test_without_the_probe_nobody_is_recognised_and_nothing_is_read(tmp_path: Path) -> None:
    token = value()
    result = netns_run(
        *("--probe", "nft", "--policy", policy(tmp_path, ENDPOINT), "--secret", "TOKEN"),
        cmd=["sh", "-c", f"{ASK} $NETNS_SECRETS_URL/TOKEN"],
        env={"TOKEN": token},
    )
    assert result.stdout.endswith("403"), result.told()
    assert token not in shows(result)


def test_dry_run_and_show_tell_names_and_hosts_and_no_value(tmp_path: Path) -> None:
    token = value()
    words = ["--policy", policy(tmp_path, ENDPOINT), "--secret", "TOKEN"]
    dry = netns_run("--dry-run", *words, cmd=["true"], env={"TOKEN": token})
    assert "TOKEN from env:TOKEN to api.test in header authorization" in dry.stdout
    assert token not in shows(dry)
    with Running(
        *("--name", "secret-shown", *words),
        cmd=["sh", "-c", "echo up; read go"],
        env={"TOKEN": token},
        stdin=subprocess.PIPE,
    ) as running:
        assert running.line() == "up\n"
        told = netns_debug("show", "secret-shown")
        assert "secret TOKEN" in told.stdout, told
        record = json.loads(netns_debug("show", "secret-shown", "--json").stdout)
        assert token not in told.stdout + json.dumps(record)
        pid = record["supervisor"]
        with open(f"/proc/{pid}/environ", "rb") as file:
            assert token.encode() not in file.read()
        running.wait(given=b"go\n")


def test_presets_are_listed_and_shown() -> None:
    listed = json.loads(netns_debug("preset", "list", "--json").stdout)
    assert {"slack", "pip"} <= {row["name"] for row in listed}
    shown = json.loads(netns_debug("preset", "show", "discord", "--json").stdout)
    assert shown["secrets"][0]["name"] == "DISCORD_BOT_TOKEN"
    assert "gateway.discord.gg" in netns_debug("preset", "show", "discord").stdout
    assert netns_debug("preset", "show", "no-such").returncode == 125


def test_an_unbound_secret_is_refused_before_anything_is_made() -> None:
    token = value()
    result = netns_run("--secret", "NOBODY_KNOWS", cmd=["true"], env={"NOBODY_KNOWS": token})
    assert result.status == 125
    assert "--secret NOBODY_KNOWS: nothing says where it may go" in result.stderr
    assert token not in shows(result)
    assert not result.audit


def test_a_preset_whose_variables_sudo_dropped_says_so_under_v() -> None:
    result = netns_run("-v", "--preset", "discord", cmd=["true"])
    assert "preset discord: DISCORD_BOT_TOKEN, DISCORD_TOKEN are not set; sudo" in result.stderr


def test_a_swapped_policy_tells_what_it_unbinds_and_show_says_so(tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text(BOUND.replace("TOKEN", "OTHER_TOKEN"))
    words = ["--policy", policy(tmp_path, BOUND), "--secret", "TOKEN"]
    with Running(
        *("--name", "secret-swapped", *words),
        cmd=["sh", "-c", "echo up; read go"],
        env={"TOKEN": value()},
        stdin=subprocess.PIPE,
    ) as running:
        assert running.line() == "up\n"
        told = netns_debug("policy", "secret-swapped", "--set", str(other))
        assert told.stdout == (
            "secret-swapped has the new policy: closed 0 flows; TOKEN is no longer bound; "
            "OTHER_TOKEN has no value: it was not given at the start\n"
        ), told
        record = json.loads(netns_debug("show", "secret-swapped", "--json").stdout)
        assert (record["policies"], record["secrets"][0]["hosts"]) == ([str(other)], [])
        running.wait(given=b"go\n")

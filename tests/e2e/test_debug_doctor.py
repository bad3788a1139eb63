"""`netns-debug doctor SANDBOX`: each fault that is injected is named, and no other."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from netns_runtime import state
from netns_runtime.probes import syscall
from netns_runtime.probes.hooks import HOOKS
from tests.e2e.test_debug_flows import POLICY
from tests.support import world
from tests.support.run import Running, netns_debug

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.lab import Lab

NAME = "debug-doctor"


@contextmanager
def running(lab: Lab, *options: str, **popen: Any) -> Iterator[state.Record]:
    words = ["sh", "-c", "echo up; read line"]
    with Running(
        "--name", NAME, *options, cmd=words, lab=lab, stdin=subprocess.PIPE, **popen
    ) as one:
        assert one.line() == "up\n"
        (record,) = [record for record in state.survey()[0] if record.name == NAME]
        yield record
        assert one.wait(given=b"\n").status == 0


def examined(status: int) -> dict[str, dict[str, Any]]:
    done = netns_debug("doctor", NAME, "--json")
    assert done.returncode == status, done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert told["well"] is (status == 0)
    return {check["check"]: check for check in told["checks"]}


def failed(checks: dict[str, dict[str, Any]]) -> list[str]:
    return [name for name, check in checks.items() if check["verdict"] == "fail"]


def test_a_sound_sandbox_is_well_and_its_audit_says_nothing_of_the_visit(
    lab: Lab, tmp_path: Path
) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text(POLICY)
    with Running(
        *("--name", NAME, "--policy", str(policy)),
        cmd=["sh", "-c", "echo up; read line"],
        lab=lab,
        stdin=subprocess.PIPE,
    ) as one:
        assert one.line() == "up\n"
        checks = examined(0)
        shown = netns_debug("doctor", NAME)
        result = one.wait(given=b"\n")
    assert [event["event"] for event in result.audit] == ["sandbox.started", "sandbox.exited"]
    wanted = {"command", "proxy", "dns", "mtu", "gateway", "probe", "trust", "clock", "uplink"}
    wanted |= {"resolver", "firewall", "unregistered"}
    assert wanted == checks.keys()
    well = {name for name, check in checks.items() if check["verdict"] == "ok"}
    # The lab's uplink has what routes it likes, this machine's clock may not be synchronised, and
    # other tests make connects that no sandbox counts.
    assert wanted <= well | {"clock", "uplink", "unregistered"}
    assert "certificates" in checks["trust"]["detail"]
    assert f"{NAME} is well\n" in shown.stdout
    assert all(len(line) <= 80 for line in shown.stdout.splitlines()), shown.stdout


def test_names_a_proxy_that_is_stopped(lab: Lab) -> None:
    with running(lab) as record:
        assert record.proxy is not None
        os.kill(record.proxy, signal.SIGSTOP)
        try:
            checks = examined(1)
        finally:
            os.kill(record.proxy, signal.SIGCONT)
        assert failed(checks) == ["proxy", "dns"]
        assert checks["proxy"]["detail"].endswith("it is stopped")
        assert failed(examined(0)) == []


def test_names_a_probe_that_was_detached(lab: Lab) -> None:
    with running(lab) as record:
        if not record.pins:
            pytest.skip("no probe here")
        cgroup = os.open(record.cgroup, os.O_RDONLY)
        program = syscall.open_pin(f"{record.pins}/{HOOKS[0].program}")
        try:
            syscall.detach(cgroup, program, HOOKS[0].attach_type)
        finally:
            os.close(program)
            os.close(cgroup)
        checks = examined(1)
    assert failed(checks) == ["probe"]
    assert checks["probe"]["detail"].endswith(f": {HOOKS[0].name}")


def test_names_a_link_whose_ends_differ(lab: Lab) -> None:
    with running(lab) as record:
        command = ["nsenter", f"--net={record.sandbox_ns}", "ip", "link", "set", "eth0", "mtu"]
        subprocess.run([*command, "1400"], check=True)
        checks = examined(1)
    assert failed(checks) == ["mtu"]
    assert "eth0 1400" in checks["mtu"]["detail"]


def test_names_a_gateway_that_lost_its_rules(lab: Lab) -> None:
    with running(lab, "--probe", "nft") as record:
        flush = ["nft", "flush", "chain", "inet", "netns_runtime", "input"]
        subprocess.run(["nsenter", f"--net={record.gateway_ns}", *flush], check=True)
        checks = examined(1)
    # Without its rules the gateway drops everything, its proxy's and resolver's included.
    assert failed(checks) == ["proxy", "dns", "gateway"]
    assert checks["probe"]["verdict"] == "warn"


def test_names_a_firewall_on_the_uplink_s_side_and_what_it_stops(fresh_lab: Lab) -> None:
    rules = (
        "add table inet fw; add chain inet fw out { type filter hook output priority 0; }; "
        f"add rule inet fw out ip daddr {world.DNS_IPV4} udp dport 53 drop"
    )
    with running(fresh_lab):
        assert fresh_lab.in_uplink("nft", rules).returncode == 0
        checks = examined(1)
    assert failed(checks) == ["resolver"]
    assert "a firewall here drops what is sent to it (EPERM)" in checks["resolver"]["detail"]
    assert checks["firewall"]["verdict"] == "warn"
    assert "inet fw out (output) has a rule that drops" in checks["firewall"]["detail"]


def test_names_a_resolver_that_nobody_serves(lab: Lab) -> None:
    nobody = f"{world.WEB_IPV4}:9"
    with running(lab, "--resolver", nobody):
        checks = examined(1)
    assert failed(checks) == ["resolver"]
    assert checks["resolver"]["detail"] == f"{nobody}: nobody listens there (port unreachable)"


def test_a_sandbox_that_has_gone_is_one_line() -> None:
    done = netns_debug("doctor", "nobody-here")
    assert done.returncode == 125
    assert len(done.stderr.splitlines()) == 1
    assert "no sandbox called nobody-here is running" in done.stderr

"""`netns-debug metrics`: exact counts in Prometheus' own terms."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from netns_runtime import state
from tests.e2e.test_debug_flows import CLIENT, POLICY
from tests.support.lab import CHECKOUT
from tests.support.run import NETNS_DEBUG, PYTHON, Running, environment, netns_debug

if TYPE_CHECKING:
    from tests.support.lab import Lab

REFUSED = 37
SCRIPT = f"""
import socket, sys, urllib.request
for _ in range({REFUSED}):
    try: socket.create_connection(("192.0.2.10", 9), 5)
    except ConnectionRefusedError: pass
try: socket.getaddrinfo("nobody.unlisted.test", 80)
except OSError: pass
urllib.request.urlopen("http://web.lab.test/", timeout=10).read()
print("done", flush=True)
sys.stdin.readline()
"""


def samples_of(text: str) -> dict[str, float]:
    """`name{labels}` to its value."""
    lines = (line for line in text.splitlines() if line and not line.startswith("#"))
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


def test_counts_are_exact_and_each_scrape_is_new(lab: Lab) -> None:
    name = "debug-metrics"
    mine = f'sandbox="{name}"'
    with Running(
        *("--name", name, "--allow", "web.lab.test"),
        cmd=[PYTHON, "-c", SCRIPT],
        lab=lab,
        stdin=subprocess.PIPE,
    ) as running:
        assert running.line() == "done\n"
        with subprocess.Popen(
            [NETNS_DEBUG, "metrics", "--listen", "127.0.0.1:0"],
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        ) as server:
            try:
                assert server.stderr is not None
                told = server.stderr.readline()
                found = re.search(r"http://127\.0\.0\.1:\d+/metrics", told)
                assert found, told
                url = found[0]
                with urllib.request.urlopen(url, timeout=10) as answer:
                    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
                    samples = samples_of(answer.read().decode())
                with pytest.raises(urllib.error.HTTPError, match="404"):
                    urllib.request.urlopen(url.replace("/metrics", "/"), timeout=10)
                # A caller that says nothing keeps nobody waiting.
                port = int(url.rpartition(":")[2].partition("/")[0])
                with socket.create_connection(("127.0.0.1", port), 5):
                    again = samples_of(urllib.request.urlopen(url, timeout=10).read().decode())
            finally:
                server.terminate()
        assert server.returncode == 0
        result = running.wait(given=b"")
    refused = f'netns_refused_connects_total{{{mine},reason="direct_tcp"}}'
    assert samples[refused] == REFUSED, result.told()
    assert samples[f"netns_sandbox_up{{{mine}}}"] == 1
    dns = f'netns_dns_refused_lookups_total{{{mine},reason="name_not_allowed"}}'
    assert samples[dns] == 1
    answered = f'netns_http_requests_total{{{mine},method="GET",code="200",said_by="upstream"}}'
    assert samples[answered] == 1
    assert samples[f"netns_http_response_delay_seconds_count{{{mine}}}"] == 1
    assert samples[f'netns_transferred_bytes_total{{{mine},direction="in"}}'] > 20
    assert again[refused] == REFUSED


ACTIVE = """
import socket, sys, time
end = time.process_time() + 0.3
while time.process_time() < end: pass
tunnel = socket.create_connection(("10.200.0.1", 3128), 10)
tunnel.sendall(b"CONNECT v4.lab.test:7 HTTP/1.1\\r\\nHost: v4.lab.test:7\\r\\n\\r\\n")
assert b" 200 " in tunnel.recv(1000)
both = [socket.create_connection(("v4.lab.test", 7), 10) for _ in range(2)]
for sock in (tunnel, *both):
    sock.sendall(b"x")
    assert sock.recv(1) == b"x"
for name in ["a", "b", "c", "a", "a"]:
    try: socket.getaddrinfo(name + ".unlisted.test", 80)
    except OSError: pass
print("active", flush=True)
sys.stdin.readline()
for sock in (tunnel, *both): sock.close()
print("closed", flush=True)
sys.stdin.readline()
"""


def scraped(name: str) -> dict[str, float]:
    """This sandbox's samples, without its own label."""
    done = netns_debug("metrics")
    assert done.returncode == 0, done.stderr
    mine = f'sandbox="{name}"'
    samples = samples_of(done.stdout)
    return {
        key.replace(f"{mine},", "").replace(f"{{{mine}}}", ""): value
        for key, value in samples.items()
        if mine in key
    }


def test_a_running_sandbox_s_flows_lookups_and_resources_are_what_they_are(lab: Lab) -> None:
    name = "debug-metrics-now"
    with Running(
        *("--name", name, "--allow", "v4.lab.test:7"),
        cmd=[PYTHON, "-c", ACTIVE],
        lab=lab,
        stdin=subprocess.PIPE,
    ) as running:
        assert running.line() == "active\n"
        (record,) = [record for record in state.survey()[0] if record.name == name]
        found = scraped(name)
        inside = Path(record.cgroup, "cgroup.procs").read_text().split()
        fds = {pid: len(os.listdir(f"/proc/{pid}/fd")) for pid in (record.supervisor, record.proxy)}
        pages = {pid: resident(pid) for pid in fds}
        running.tell("close")
        assert running.line() == "closed\n"
        after = scraped(name)
        while after['netns_flows_active{entry="redirected"}']:
            after = scraped(name)
        assert running.wait(given=b"").status == 0
    actives = [(f'netns_flows_active{{entry="{entry}"}}', n) for entry, n in FLOWS.items()]
    assert [found[key] for key, _ in actives] == [n for _, n in actives], found
    assert [after[key] for key, _ in actives] == [0, 0]
    # Five lookups of three names, each with A and AAAA; repetitions have no audit line yet.
    assert found['netns_dns_refused_lookups_total{reason="name_not_allowed"}'] == 5
    assert after['netns_dns_refused_lookups_total{reason="name_not_allowed"}'] == 5
    assert found["netns_sandbox_processes"] == len(inside) >= 1
    assert 0.25 < found["netns_sandbox_cpu_seconds_total"] < 10
    for role, pid in (("supervisor", record.supervisor), ("proxy", record.proxy)):
        own = f'{{process="{role}"}}'
        assert abs(found[f"netns_process_open_fds{own}"] - fds[pid]) <= 2, "it answers meanwhile"
        memory = found[f"netns_process_resident_memory_bytes{own}"]
        assert abs(memory - pages[pid]) < 8 << 20
        assert 0 < found[f"netns_process_cpu_seconds_total{own}"] < 10
    memory_file = Path(record.cgroup, "memory.current")
    assert ("netns_sandbox_memory_bytes" in found) is memory_file.exists()
    if memory_file.exists():
        assert 1 << 20 < found["netns_sandbox_memory_bytes"] < 1 << 30


FLOWS = {"explicit": 1, "redirected": 2}


def resident(pid: int | None) -> int:
    """Octets, from the kernel's other word for it (VmRSS)."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition("VmRSS:")[2].split()[0]) * 1024


def test_promtool_finds_nothing_to_complain_of(lab: Lab, tmp_path: Path) -> None:
    promtool = shutil.which("promtool") or str(CHECKOUT / ".venv/promtool")
    if not os.path.exists(promtool):
        pytest.skip("promtool (Debian's prometheus) is not here")
    name = "debug-promtool"
    policy = tmp_path / "policy.yaml"
    policy.write_text(POLICY)
    with Running(
        *("--name", name, "--policy", str(policy)),
        cmd=[PYTHON, CLIENT, "websocket", "web.lab.test", "443"],
        lab=lab,
        stdin=subprocess.PIPE,
    ) as running:
        assert running.line() == "held\n"
        while_open = samples_of(netns_debug("metrics").stdout)
        running.tell("close")
        assert running.line() == "closed\n"
        text = netns_debug("metrics").stdout
        as_json = json.loads(netns_debug("metrics", "--json").stdout)
        running.wait(given=b"")
    done = subprocess.run(
        [promtool, "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), text
    samples = samples_of(text)
    assert while_open[f'netns_websockets_active{{sandbox="{name}"}}'] == 1
    assert samples[f'netns_websockets_active{{sandbox="{name}"}}'] == 0
    closes = f'netns_websockets_closed_total{{sandbox="{name}",code="1000",said_by="sandbox"}}'
    assert samples[closes] == 1
    assert {family["name"] for family in as_json} <= {
        line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")
    }


def test_nobody_running_is_told_as_such() -> None:
    done = netns_debug("metrics")
    assert done.returncode == 0
    assert "# TYPE netns_sandboxes gauge" in done.stdout


@pytest.mark.parametrize("listen", ["9464", "localhost:9464", "127.0.0.1:port", "1.2.3.4.5:1"])
def test_an_address_that_is_none_is_one_line(listen: str) -> None:
    done = netns_debug("metrics", "--listen", listen)
    assert done.returncode == 125
    assert done.stderr.startswith(f"netns-debug: --listen {listen}: ")
    assert len(done.stderr.splitlines()) == 1

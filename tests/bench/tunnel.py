"""`python -m tests.bench.tunnel [--quick]`: a tunnel through our proxy next to others, in one run.

Three namespaces in a row, client, proxy and server, with no way out; whichever of squid, haproxy
and mitmproxy is installed is measured beside ours and a direct connection. Rounds are paired: each
measures everyone once, and medians are compared as ratios. haproxy 2.6 is no forward proxy: it
relays TCP to the one server, so its connects lack a request. "redirected" is ours for a client that
knows of no proxy, through the same TPROXY rule as in the gateway.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Final

from tests.bench.tunnel_load import SERVER_PORT
from tests.bench.tunnel_proxies import PORT, REDIRECTED, TRANSPARENT_PORT, Contender, contenders

if TYPE_CHECKING:
    from collections.abc import Iterator

CLIENT, PROXY_IN, PROXY_OUT, SERVER = "192.0.2.2", "192.0.2.1", "198.51.100.1", "198.51.100.2"
_TPROXY: Final = f"""
table ip bench {{
  chain prerouting {{
    type filter hook prerouting priority mangle;
    iifname in0 ip daddr {REDIRECTED} meta l4proto tcp meta mark set 1 \\
      tproxy to :{TRANSPARENT_PORT} accept
  }}
}}
"""
KINDS: Final = ("bulk", "connects", "round_trips")


def _ip(*words: str) -> None:
    subprocess.run(("ip", *words), check=True)


@contextmanager
def _namespaces() -> Iterator[tuple[str, str, str]]:
    names = tuple(f"nrb{os.getpid()}{part}" for part in "cps")
    client, proxy, server = names
    with ExitStack() as stack:
        for name in names:
            _ip("netns", "add", name)
            stack.callback(subprocess.run, ("ip", "netns", "del", name), check=False)
            _ip("-n", name, "link", "set", "lo", "up")
        for left, left_ip, right, right_ip in (
            (client, CLIENT, proxy, PROXY_IN),
            (proxy, PROXY_OUT, server, SERVER),
        ):
            near, far = ("far0", "near0") if left == proxy else ("near0", "in0")
            peer = ("peer", "name", far, "netns", right)
            _ip("-n", left, "link", "add", near, "type", "veth", *peer)
            for name, link, address in ((left, near, left_ip), (right, far, right_ip)):
                _ip("-n", name, "address", "add", f"{address}/24", "dev", link)
                _ip("-n", name, "link", "set", link, "up")
        _ip("-n", client, "route", "add", "default", "via", PROXY_IN)
        _ip("-n", server, "route", "add", "default", "via", PROXY_OUT)
        forward = ("sysctl", "-qw", "net.ipv4.ip_forward=1")
        subprocess.run(("ip", "netns", "exec", proxy, *forward), check=True)
        _ip("-n", server, "address", "add", f"{REDIRECTED}/32", "dev", "near0")
        _ip("-n", proxy, "route", "add", f"{REDIRECTED}/32", "dev", "far0")
        _ip("-n", proxy, "rule", "add", "fwmark", "1", "lookup", "100")
        _ip("-n", proxy, "route", "add", "local", "default", "dev", "lo", "table", "100")
        load = ("ip", "netns", "exec", proxy, "nft", "-f", "-")
        subprocess.run(load, input=_TPROXY.encode(), check=True)
        yield client, proxy, server


@contextmanager
def _running(namespace: str, command: tuple[str, ...], address: str, port: int) -> Iterator[int]:
    inside = ("ip", "netns", "exec", namespace, *command)
    process = subprocess.Popen(inside, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    try:
        probe = ("ip", "netns", "exec", namespace, "ss", "-Hltn", f"sport = :{port}")
        for _ in range(200):
            if address in subprocess.run(probe, capture_output=True, text=True).stdout:
                break
            if process.poll() is not None:
                raise SystemExit(f"{command[0]} ended: {process.returncode}")
            time.sleep(0.1)
        time.sleep(0.5)
        yield process.pid
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(0.5)
        except subprocess.TimeoutExpired:
            process.terminate()
            process.wait()


def _cpu_of(pid: int) -> float:
    """Seconds of user and system time of a process and its children that live."""
    stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    own = (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")
    return own + sum(_cpu_of(int(child)) for child in children)


def _load(namespace: str, kind: str, where: tuple[str, int], target: str, seconds: float) -> Any:
    command = (sys.executable, "-m", "tests.bench.tunnel_load", kind, where[0], str(where[1]))
    inside = ("ip", "netns", "exec", namespace, *command, target, str(seconds))
    return json.loads(subprocess.run(inside, check=True, capture_output=True).stdout)


def _measure(
    namespaces: tuple[str, str, str], found: list[Contender], rounds: int, seconds: float
) -> dict[str, dict[str, list[float]]]:
    client, proxy, _ = namespaces
    results: dict[str, dict[str, list[float]]] = {}
    server = f"{SERVER}:{SERVER_PORT}"
    for _ in range(rounds):
        for contender in (None, *found):
            mine = results.setdefault(contender.name if contender else "direct", {})
            with ExitStack() as stack:
                where, target, pid = (SERVER, SERVER_PORT), "", 0
                if contender is not None:
                    where = contender.where or (PROXY_IN, PORT)
                    pid = stack.enter_context(_running(proxy, contender.command, PROXY_IN, PORT))
                    target = server if contender.speaks_connect else ""
                for kind in KINDS:
                    before = _cpu_of(pid) if pid else 0.0
                    value = _load(client, kind, where, target, seconds)
                    used = (_cpu_of(pid) - before if pid else 0.0) / seconds
                    mine.setdefault(f"{kind} cpu", []).append(used)
                    if kind == "round_trips":
                        mine.setdefault("p50", []).append(value[0] * 1e6)
                        mine.setdefault("p99", []).append(value[1] * 1e6)
                    else:
                        mine.setdefault(kind, []).append(value)
    return results


def _table(results: dict[str, dict[str, list[float]]]) -> Iterator[str]:
    yield f"{'':10}{'GB/s':>8}{'cpu':>6}{'CONNECT/s':>11}{'cpu':>6}{'p50 us':>8}{'p99 us':>8}"
    medians = {
        name: {key: median(values) for key, values in of.items()} for name, of in results.items()
    }
    for name, of in medians.items():
        yield (
            f"{name:10}{of['bulk'] / 1e9:8.2f}{of['bulk cpu']:6.2f}{of['connects']:11.0f}"
            f"{of['connects cpu']:6.2f}{of['p50']:8.1f}{of['p99']:8.1f}"
        )
    ours = medians.get("ours", {})
    for name, of in medians.items():
        if name != "ours" and "ours" in medians:
            yield (
                f"ours / {name}: bulk {ours['bulk'] / of['bulk']:.2f}, new connections"
                f" {ours['connects'] / of['connects']:.2f}, p50 {ours['p50'] / of['p50']:.2f}"
            )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--only", help="names, comma-separated")
    options = parser.parse_args()
    rounds, seconds = (1, 1.0) if options.quick else (3, 2.0)
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        found, missing = contenders(PROXY_IN, f"{SERVER}:{SERVER_PORT}", directory)
        if options.only:
            found = [contender for contender in found if contender.name in options.only]
        if missing:
            sys.stdout.write(f"not installed, so not measured: {', '.join(missing)}\n")
        namespaces = stack.enter_context(_namespaces())
        serve = (sys.executable, "-m", "tests.bench.tunnel_load", "server")
        stack.enter_context(_running(namespaces[2], serve, "0.0.0.0", SERVER_PORT))
        results = _measure(namespaces, found, rounds, seconds)
    for line in _table(results):
        sys.stdout.write(line + "\n")
    sys.stdout.write("haproxy is a fixed TCP relay here: no CONNECT, no policy, no audit.\n")


if __name__ == "__main__":
    main()

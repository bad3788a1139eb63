"""`netns-debug trace` on a running sandbox: what it shows, what it counts, and what it costs."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import tempfile
import threading
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.run import NETNS_DEBUG, PYTHON, Running, environment, netns_debug

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.lab import Lab

# Refused connects in a row on one address, as fast as it goes; says how long each took.
FLOOD = """
import socket, sys, time
print("up", flush=True)
sys.stdin.readline()
count = int(sys.argv[1])
sock = socket.socket()
begun = time.perf_counter()
for _ in range(count):
    sock.connect_ex(("203.0.113.5", 81))
print((time.perf_counter() - begun) / count * 1e9, flush=True)
sys.stdin.readline()
"""
# Two sends that pass every hook: UDP to an allowed name's virtual address, and UDP-Lite, connected.
UNSEEN = """
import socket, sys
print("up", flush=True)
sys.stdin.readline()
[(_, _, _, _, virtual)] = socket.getaddrinfo("web.lab.test", 443, socket.AF_INET, socket.SOCK_DGRAM)
for protocol, address in ((17, virtual), (136, ("203.0.113.5", 81))):
    try:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, protocol)
    except OSError:
        continue  # Linux without UDP-Lite, which 7.1 took out
    sock.connect(address)
    sock.send(b"x")
    print(protocol, *address, flush=True)
print("done", flush=True)
sys.stdin.readline()
"""
CURL = "curl -s -o /dev/null -m 5"
REFUSED = f"""{PYTHON} -c 'import socket; socket.socket().connect_ex(("203.0.113.5", 81))'"""
LOOKED_UP = f"""{PYTHON} -c 'import socket; socket.getaddrinfo("nobody.lab.test", 80)' 2>&-"""


class Trace:
    """A `netns-debug trace --json` at work; its lines are read as they come."""

    def __init__(self, name: str, *options: str) -> None:
        self.lines: list[dict[str, Any]] = []
        with tempfile.TemporaryFile("w+") as said:
            self.process = subprocess.Popen(
                [NETNS_DEBUG, "trace", name, "--json", *options],
                stdout=subprocess.PIPE,
                stderr=said,
                text=True,
                env=environment(),
            )
            self._said = os.fdopen(os.dup(said.fileno()), "r+")
        # A line that never comes ends the trace, and with it the wait.
        self._patience = threading.Timer(30, self.process.kill)
        self._patience.start()

    def until(self, wanted: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        """The next line of which this is true; those before it are kept too."""
        assert self.process.stdout is not None
        for text in self.process.stdout:
            self.lines.append(json.loads(text))
            if wanted(self.lines[-1]):
                return self.lines[-1]
        raise AssertionError(f"the trace ended first: {self.lines}")

    def end(self) -> tuple[list[dict[str, Any]], dict[str, int]]:
        """Every line but the first and the last, and the totals."""
        assert self.process.stdout is not None
        self.lines += [json.loads(text) for text in self.process.stdout]
        self.process.wait(10)
        self.process.stdout.close()
        self._patience.cancel()
        self._patience.join()
        with self._said:
            self._said.seek(0)
            assert self._said.read() == ""
        assert "totals" in self.lines[-1], self.lines[-5:]
        return self.lines[1:-1], self.lines[-1]["totals"]


@pytest.fixture
def name() -> str:
    return f"trace-{os.getpid()}"


@pytest.fixture
def shell(lab: Lab, name: str) -> Iterator[Running]:
    words = ["sh", "-c", 'while read line; do eval "$line"; echo done; done']
    with Running(
        *("--name", name, "--allow", "web.lab.test:80", "--allow", "web.lab.test:9"),
        cmd=words,
        lab=lab,
        stdin=subprocess.PIPE,
    ) as running:
        do(running, ":")
        yield running
        leave(running)
        running.process.wait(10)


LEFT: set[int] = set()


def leave(running: Running) -> None:
    if running.process.pid not in LEFT:
        LEFT.add(running.process.pid)
        running.tell("exit 0")


def do(running: Running, command: str) -> None:
    running.tell(command)
    assert running.line().strip() == "done"


def followed(name: str, *options: str) -> Trace:
    trace = Trace(name, *options)
    assert trace.until(lambda _: True) == {"began": {"sandbox": name}}
    return trace


def is_refused_connect(line: dict[str, Any]) -> bool:
    return bool(line.get("event", {}).get("event") == "connect.refused")


def is_kernels(kind: str) -> Callable[[dict[str, Any]], bool]:
    return lambda line: line.get("kernel", {}).get("kind") == kind


def test_shows_refusals_decisions_and_failures_with_their_process(
    shell: Running, name: str
) -> None:
    trace = followed(name)
    do(shell, f"{CURL} http://web.lab.test/")
    do(shell, f"{CURL} http://web.lab.test:9/")
    do(shell, f"{CURL} http://nobody.lab.test/")
    do(shell, f"{CURL} --noproxy '*' http://nobody.lab.test/")
    do(shell, f"{CURL} --noproxy '*' http://203.0.113.5:81/")
    # Whose child it was is looked up when the event comes: the parent has to be there still.
    trace.until(is_refused_connect)
    leave(shell)
    lines, totals = trace.end()
    events = [line["event"] for line in lines]
    found = {(e["event"], e.get("action"), e.get("reason")) for e in events}
    assert {
        ("flow.decided", "allow", None),
        ("flow.closed", None, "connection_refused"),
        ("flow.decided", "refuse", "http_request_denied"),
        ("dns.refused", "refuse", "name_not_allowed"),
        ("connect.refused", "refuse", "direct_tcp"),
    } <= found
    assert events[-1]["event"] == "sandbox.exited"
    assert {e.get("comm") for e in events if "comm" in e} == {"curl"}
    assert {e.get("exe") for e in events if "exe" in e} == {"/usr/bin/curl"}
    [direct] = [line for line in lines if line["event"]["event"] == "connect.refused"]
    assert direct["ancestry"][0]["comm"] == "sh", "who had started it, though it has ended"
    assert totals == {"refused": 1, "told": 1, "shown": 1, "not_told": 0, "events_lost": 0}


def test_filters_leave_out_and_say_how_many(shell: Running, name: str) -> None:
    trace = followed(name, "--host", "*.lab.test", "--action", "refuse", "--process", "curl")
    do(shell, f"{CURL} http://web.lab.test/")
    do(shell, f"{CURL} http://nobody.lab.test/")
    do(shell, f"{CURL} --noproxy '*' http://203.0.113.5:81/")
    leave(shell)
    lines, totals = trace.end()
    shown = [line["event"] for line in lines if not line["event"]["event"].startswith("sandbox.")]
    assert {event["host"] for event in shown} == {"nobody.lab.test"}
    assert totals == {"refused": 1, "told": 1, "shown": 0, "not_told": 0, "events_lost": 0}


def test_a_process_s_filter_leaves_out_what_other_processes_do(shell: Running, name: str) -> None:
    trace = followed(name, "--process", "curl")
    for client in (f"{CURL} --noproxy '*' http://203.0.113.5:81/", REFUSED, LOOKED_UP):
        do(shell, client)
    do(shell, f"{CURL} --noproxy '*' http://curls.lab.test/")
    leave(shell)
    lines, totals = trace.end()
    events = [line["event"] for line in lines if not line["event"]["event"].startswith("sandbox.")]
    assert {event["comm"] for event in events} == {"curl"}
    assert {event["event"] for event in events} == {"connect.refused", "dns.refused"}
    others = {event["comm"] for event in shell.audit() if "comm" in event} - {"curl"}
    assert others == {os.path.basename(PYTHON)}, "somebody else did the same meanwhile"
    assert totals == {"refused": 2, "told": 2, "shown": 1, "not_told": 0, "events_lost": 0}


def test_an_interrupt_ends_it_with_the_count(shell: Running, name: str) -> None:
    trace = followed(name)
    do(shell, f"{CURL} --noproxy '*' http://203.0.113.5:81/")
    trace.until(is_refused_connect)
    trace.process.send_signal(signal.SIGINT)
    _, totals = trace.end()
    assert totals["refused"] == 1
    assert trace.process.returncode == 0


def test_what_is_remembered_can_be_shown_first(shell: Running, name: str) -> None:
    do(shell, f"{CURL} http://nobody.lab.test/")
    said = netns_debug("trace", name, "--recent", "--for", "0.3")
    assert said.returncode == 0
    assert "nobody.lab.test:80" in said.stdout
    assert "fix  --allow nobody.lab.test:80" in said.stdout
    assert all(len(line) <= 80 for line in said.stdout.splitlines() if "--" not in line)
    assert "0 refused connects since the trace began" in said.stdout.splitlines()[-1]


def test_a_hundred_thousand_refused_connects_are_all_counted(lab: Lab, name: str) -> None:
    with Running(
        "--name", name, cmd=[PYTHON, "-c", FLOOD, "100000"], lab=lab, stdin=subprocess.PIPE
    ) as running:
        assert running.line() == "up\n"
        trace = followed(name)
        running.tell("go")
        assert float(running.line()) > 0
        running.tell("end")
        ended = running.wait().event("sandbox.exited")
        lines, totals = trace.end()
    told = sum(line["event"].get("event") == "connect.refused" for line in lines)
    assert ended["count"] == 100_000
    assert totals["refused"] == 100_000
    assert totals["told"] == told
    assert totals["not_told"] == 100_000 - told
    assert totals["not_told"] > 90_000


def test_kernel_tells_why_a_packet_was_dropped_and_by_which_rule(lab: Lab, name: str) -> None:
    """Without the probe the gateway's nft refuses: its own trace and a reset say so."""
    script = f"echo up; read x; {CURL} --noproxy '*' http://203.0.113.5:81/; read x"
    with Running(
        *("--name", name, "--probe", "nft"),
        cmd=["sh", "-c", script],
        lab=lab,
        stdin=subprocess.PIPE,
    ) as running:
        assert running.line() == "up\n"
        trace = followed(name, "--kernel")
        running.tell("go")
        trace.until(is_kernels("reset received"))
        trace.until(lambda line: "verdict" in line.get("nft", {}).get("text", ""))
        running.tell("end")
        running.wait()
        lines, _ = trace.end()
    kernel = [line["kernel"] for line in lines if "kernel" in line]
    assert not [entry for entry in kernel if entry["kind"] == "missing"], kernel
    states = {entry["reason"] for entry in kernel if entry["kind"] == "state"}
    assert {"CLOSE -> SYN_SENT", "SYN_SENT -> CLOSE"} <= states
    drops = [e for e in kernel if e["kind"] == "drop" and "203.0.113.5:81" in str(e.values())]
    assert any(entry["reason"] == "NETFILTER_DROP" for entry in drops), kernel
    assert all(entry["function"] for entry in drops)
    assert any(entry["kind"] == "reset received" for entry in kernel), kernel
    rules = [line["nft"]["text"] for line in lines if "nft" in line]
    assert any("refused_tcp" in text and "verdict" in text for text in rules), rules


def sends_of(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [line["kernel"] for line in lines if is_kernels("send")(line)]


def test_kernel_names_who_sends_what_no_hook_sees(lab: Lab, name: str) -> None:
    with Running(
        *("--name", name, "--allow", "web.lab.test"),
        cmd=[PYTHON, "-c", UNSEEN],
        lab=lab,
        stdin=subprocess.PIPE,
    ) as running:
        assert running.line() == "up\n"
        trace = followed(name, "--kernel")
        running.tell("go")
        made = []
        while (line := running.line().split()) != ["done"]:
            assert line, running.wait().told()
            made.append(line)
        while len(sends_of(trace.lines)) < len(made):
            trace.until(is_kernels("send"))
        running.tell("end")
        result = running.wait()
        lines, _ = trace.end()
    sends = sends_of(lines)
    names = {"17": "udp", "136": "udplite"}
    assert [(entry["protocol"], entry["destination"]) for entry in sends] == [
        (names[protocol], f"{address}:{port}") for protocol, address, port in made
    ], lines
    assert {entry["comm"] for entry in sends} == {os.path.basename(PYTHON)}
    # The gateway counted the same, and knows no process.
    counted = result.events("connect.refused", counted_by="nft")
    assert sum(event["count"] for event in counted) == len(made), result.told()
    assert not any("pid" in event for event in counted)


def test_stacks_tell_where_in_the_process_a_connect_was_refused(lab: Lab, name: str) -> None:
    with Running(
        "--name", name, cmd=[PYTHON, "-c", FLOOD, "1"], lab=lab, stdin=subprocess.PIPE
    ) as running:
        assert running.line() == "up\n"
        trace = followed(name, "--stacks")
        running.tell("go")
        running.line()
        trace.until(is_kernels("stack"))
        running.tell("end")
        running.wait()
        lines, _ = trace.end()
    stacks = [
        line["kernel"] for line in lines if "kernel" in line and line["kernel"]["kind"] == "stack"
    ]
    assert stacks
    innermost = stacks[0]["user_stack"][0]
    # Since glibc 2.41 the system call is made in a function that libc has no symbol for.
    has_symbol = tuple(map(int, platform.libc_ver()[1].split("."))) < (2, 41)
    assert "connect" in innermost if has_symbol else innermost.endswith("[libc.so.6]")
    assert any(
        "do_syscall_64" in frame or "el0_svc" in frame for frame in stacks[0]["kernel_stack"]
    )


def test_an_audit_file_can_be_shown_as_a_trace(shell: Running, name: str, tmp_path: Any) -> None:
    do(shell, f"{CURL} http://nobody.lab.test/")
    path = tmp_path / "audit.jsonl"
    whole = "".join(json.dumps(event) + "\n" for event in shell.audit())
    path.write_text(whole + '{"event": "flow.cl')
    said = netns_debug("trace", "--from", str(path), "--action", "refuse")
    assert said.returncode == 0
    assert "REFUSED http    curl" in said.stdout
    assert said.stderr == ("netns-debug: the last line is cut off in the middle; it is left out\n")


def test_a_sandbox_that_has_gone_is_one_line(name: str) -> None:
    said = netns_debug("trace", name)
    assert said.returncode == 125
    assert said.stderr.startswith(f"netns-debug: no sandbox called {name} is running: see ")
    assert len(said.stderr.splitlines()) == 1

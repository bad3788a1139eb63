"""`netns-debug trace --kernel` tells its own sandbox's packets and no others, and what it lacks."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from netns_runtime import state
from netns_runtime.debug import kernel
from netns_runtime.debug.text import Page
from netns_runtime.probes import tracing
from tests.e2e.test_debug_trace import CURL, followed
from tests.support.run import Running

if TYPE_CHECKING:
    import pytest

    from tests.support.lab import Lab

PORTS = (81, 82)
"""What the first and the second sandbox try at 203.0.113.5."""
HOST_PORT = 83


def test_packets_of_other_namespaces_are_left_out(lab: Lab) -> None:
    """Two sandboxes and the host do the same at once, and each trace has its own alone."""
    with ExitStack() as stack:
        names = [f"trace-{os.getpid()}-{port}" for port in PORTS]
        both = []
        for name, port in zip(names, PORTS, strict=True):
            script = f"echo up; read x; {CURL} --noproxy '*' http://203.0.113.5:{port}/; read x"
            one = Running(
                *("--name", name, "--probe", "nft"),
                cmd=["sh", "-c", script],
                lab=lab,
                stdin=subprocess.PIPE,
            )
            both.append(stack.enter_context(one))
            assert one.line() == "up\n"
        traces = [followed(name, "--kernel") for name in names]
        for one in both:
            one.tell("go")
        with socket.socket() as host:
            # A refused connect makes states, a reset and a dropped packet of the host's own.
            assert host.connect_ex(("127.0.0.1", HOST_PORT)) != 0
        for trace in traces:
            trace.until(lambda line: line.get("kernel", {}).get("kind") == "reset received")
            trace.until(lambda line: "verdict" in line.get("nft", {}).get("text", ""))
        for one in both:
            one.tell("end")
            one.wait()
        told = [json.dumps(trace.end()[0]) for trace in traces]
    assert [f"203.0.113.5:{port}" in text for text in told for port in PORTS] == [
        *(True, False),
        *(False, True),
    ]
    assert [f"dport {port} " in text for text in told for port in PORTS] == [
        *(True, False),
        *(False, True),
    ], "the rules' trace"
    assert not any(f"127.0.0.1:{HOST_PORT}" in text for text in told)


def test_a_tracepoint_that_the_kernel_lacks_is_one_line_with_a_remedy(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel itself says that it has no such tracepoint; the others go on."""
    wanted = {**tracing.PACKETS, "tcp_of_another_kernel": tracing.PACKETS["tcp_send_reset"]}
    monkeypatch.setattr(tracing, "PACKETS", wanted)
    name = f"trace-{os.getpid()}"
    script = f"echo up; read x; {CURL} --noproxy '*' http://203.0.113.5:81/; echo did; read x"
    with Running(
        *("--name", name, "--probe", "nft"),
        cmd=["sh", "-c", script],
        lab=lab,
        stdin=subprocess.PIPE,
    ) as running:
        assert running.line() == "up\n"
        (record,) = [record for record in state.survey()[0] if record.name == name]
        lines = kernel.follow(record, packets=True, stacks=False)
        try:
            missing = next(lines)
            assert missing is not None
            running.tell("go")
            assert running.line() == "did\n"
            kinds: set[str] = set()
            end = time.monotonic() + 10
            while not kinds >= {"state", "drop", "reset received"} and time.monotonic() < end:
                line = next(lines)
                kinds |= {line["kernel"]["kind"]} if line and "kernel" in line else set()
        finally:
            lines.close()  # type: ignore[attr-defined]
        running.tell("end")
        running.wait()
    assert missing["kernel"] == {
        "kind": "missing",
        "reason": "this kernel has no tracepoint tcp_of_another_kernel (No such file or directory):"
        " what it tells is left out; a newer kernel, with CONFIG_BPF_EVENTS, has it",
    }
    text = kernel.text_of(missing, Page(width=80, colour=False))
    assert all(len(one) <= 80 for one in text.splitlines()), text
    assert kinds >= {"state", "drop", "reset received"}
    assert "missing" not in kinds, "and nothing else is"

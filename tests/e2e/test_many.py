"""A hundred sandboxes at once, and what a kill at any moment leaves."""

from __future__ import annotations

import random
import subprocess
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.support import leftovers
from tests.support.run import Running, netns_debug, netns_run

if TYPE_CHECKING:
    from tests.support.lab import Lab

MANY = 100
KILLS = 12


ASK = """
read go
curl -sSf -o /dev/null "http://web.lab.test/echo/$1"
echo "allowed $?"
curl -sSf -o /dev/null http://other.test/ 2>/dev/null
echo "unlisted $?"
read end
"""


def test_a_hundred_sandboxes_do_not_disturb_each_other(lab: Lab) -> None:
    """All are up, each with its own 10.200.0.1:3128, and all ask in the same instant."""
    with ExitStack() as stack:
        running = []
        for number in range(MANY):
            command = ["sh", "-c", ASK, "sh", str(number)]
            one = Running("--allow", "web.lab.test", cmd=command, lab=lab, stdin=subprocess.PIPE)
            running.append(stack.enter_context(one))
            if number % 4 == 3:
                wait_until_started(running[-4:])
        for one in running:
            one.tell("go")
        for one in running:
            assert one.line() == "allowed 0\n", one.wait(given=b"").told()
            assert one.line() == "unlisted 22\n", one.wait(given=b"").told()
        assert all(one.process.poll() is None for one in running)
        for one in running:
            one.tell("end")
        results = [one.wait() for one in running]
    wrong = [result.told() for result in results if result.status != 0]
    assert not wrong, wrong[0]
    asked = {request["target"] for request in lab.requests_seen()}
    assert asked == {f"/echo/{number}" for number in range(MANY)}
    for number, result in enumerate(results):
        targets = {line["path"] for line in result.events("http.request", action="allow")}
        assert targets == {f"/echo/{number}"}, "an audit holds another sandbox's request"
    names = {result.event("sandbox.started")["sandbox"] for result in results}
    assert len(names) == MANY


def wait_until_started(some: list[Running]) -> None:
    deadline = time.monotonic() + 30
    for one in some:
        while not any(line["event"] == "sandbox.started" for line in one.audit()):
            assert one.process.poll() is None, one.wait().told()
            assert time.monotonic() < deadline, "a sandbox did not start"
            time.sleep(0.01)


@pytest.mark.killed
def test_a_kill_at_any_moment_leaves_nothing(lab: Lab) -> None:
    """The moments are spread over set-up, use and end by a seeded choice."""
    before = leftovers.snapshot()
    start = time.monotonic()
    netns_run("--allow", "web.lab.test", cmd=["true"], lab=lab)
    whole = time.monotonic() - start
    choose = random.Random(2)
    for _ in range(KILLS):
        after = choose.uniform(0, whole * 1.3)
        with Running("--allow", "web.lab.test", cmd=["sleep", "30"], lab=lab) as running:
            with pytest.raises(subprocess.TimeoutExpired):
                running.process.wait(after)
            running.process.kill()
            running.process.wait()
        left = leftovers.wait_for_nothing(before, killed=True)
        assert not left, f"killed after {after:.3f} s: {left}"
    assert netns_debug("gc").returncode == 0
    assert leftovers.wait_for_nothing(before) == []


@pytest.mark.killed
def test_the_next_run_reclaims_what_a_kill_left(lab: Lab) -> None:
    before = leftovers.snapshot()
    with Running("--allow", "web.lab.test", cmd=["sleep", "30"], lab=lab) as running:
        wait_until_started([running])
        running.process.kill()
        running.process.wait()
    assert leftovers.wait_for_nothing(before, killed=True) == []
    assert netns_run(cmd=["true"], lab=lab).status == 0
    assert leftovers.wait_for_nothing(before) == []

"""What the rows share: a refused connect as CMD sees it, and an error as a person sees it."""

from __future__ import annotations

import json
from typing import Any

from tests.support.run import PYTHON, Result, netns_debug, netns_run

CONNECT = """
import errno, json, socket, sys, time
told = []
for host, port in json.loads(sys.argv[1]):
    began = time.monotonic()
    try:
        socket.create_connection((host, port), 10).close()
        name = "connected"
    except OSError as error:
        name = errno.errorcode.get(error.errno, str(error))
    told.append([name, time.monotonic() - began])
print(json.dumps(told))
"""


def connects(*options: str, to: list[tuple[str, int]], lab: Any = None) -> tuple[list[str], Result]:
    """How each connect ended inside a sandbox, by errno's name, none later than 3 s."""
    result = netns_run(*options, cmd=[PYTHON, "-c", CONNECT, json.dumps(to)], lab=lab, timeout=90)
    assert result.status == 0, result.told()
    told = json.loads(result.stdout)
    assert all(seconds < 3 for _, seconds in told), result.told()
    return [name for name, _ in told], result


def assert_one_line(result: Result, *words: str) -> None:
    """125, nothing on standard output, one line that holds the words."""
    assert result.status == 125, result.told()
    assert result.stdout == "", result.told()
    (line,) = result.stderr.splitlines()
    assert line.startswith("netns-run: "), line
    for word in words:
        assert word in line, (word, line)


def checks() -> dict[str, dict[str, Any]]:
    """What doctor finds, by feature."""
    answer = json.loads(netns_debug("doctor", "--json", timeout=120).stdout)
    return {check["feature"]: check for check in answer["checks"]}

"""usage: batch_script.py < JSON: runs many clients inside one sandbox, two at a time.

Input: {"drop": names, "env": variables, "clients": {name: {"argv", "stdin", "keeps"}}}. A client
that does not keep them runs without the variables of "drop". Output: {name: {"status", "stdout",
"stderr", "ended" (seconds since the epoch)}}; a client that was killed after `TIMEOUT` has the
status null.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

AT_ONCE = 2
TIMEOUT = 20


def run(client: dict[str, Any], environment: dict[str, str]) -> dict[str, Any]:
    try:
        done = subprocess.run(
            client["argv"],
            input=client["stdin"],
            env=environment,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT,
            check=False,
        )
        outcome = {"status": done.returncode, "stdout": done.stdout, "stderr": done.stderr}
    except subprocess.TimeoutExpired as late:
        said = {"stdout": late.stdout or b"", "stderr": late.stderr or b""}
        outcome = {"status": None, **{k: v.decode(errors="replace") for k, v in said.items()}}
    except OSError as error:
        outcome = {"status": 127, "stdout": "", "stderr": str(error)}
    return {**outcome, "ended": time.time()}


def main() -> None:
    asked = json.load(sys.stdin)
    kept = {**os.environ, **asked["env"]}
    dropped = {name: value for name, value in kept.items() if name not in asked["drop"]}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        pending = {
            name: pool.submit(run, client, kept if client["keeps"] else dropped)
            for name, client in asked["clients"].items()
        }
    json.dump({name: result.result() for name, result in pending.items()}, sys.stdout)


if __name__ == "__main__":
    main()

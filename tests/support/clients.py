"""Real clients that honour the proxy variables, as a table.

Each takes a URL and prints what it got. `denied` is what its own words for a 403 contain, for plain
http (where the proxy's answer is a response) and through CONNECT (where it is a failed tunnel).
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Final

from tests.support.lab import CHECKOUT
from tests.support.run import CLIENT_PYTHON, NODE_MODULES

if TYPE_CHECKING:
    from tests.support.lab import Lab

SCRIPTS: Final = CHECKOUT / "tests/e2e"


@dataclass(frozen=True)
class Client:
    """`argv` gets the URL as its last word. `schemes` are the ones it speaks."""

    name: str
    argv: tuple[str, ...]
    schemes: tuple[str, ...] = ("http", "https")
    denied_plain: str = "403"
    denied_tunnel: str = "403"

    def command(self, url: str) -> list[str]:
        return [*self.argv, url]


def python(script: str) -> tuple[str, ...]:
    return (CLIENT_PYTHON, str(SCRIPTS / "python" / script))


def node(script: str) -> tuple[str, ...]:
    return ("node", "--no-warnings", str(SCRIPTS / "node" / script))


@cache
def node_version() -> tuple[int, int]:
    try:
        told = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return (0, 0)
    major, minor, _ = told.stdout.strip().lstrip("v").split(".")
    return int(major), int(minor)


WS: Final = ("wss",)

CLIENTS: Final[tuple[Client, ...]] = (
    Client("curl", ("curl", "-sSf", "--max-time", "10")),
    Client(
        "wget", ("wget", "-nv", "-O", "-", "--tries=1", "--timeout=10"), denied_tunnel="Forbidden"
    ),
    Client("requests", python("get_requests.py")),
    Client("httpx", python("get_httpx.py")),
    Client("aiohttp", python("get_aiohttp.py")),
    Client("urllib", python("get_urllib.py")),
    Client("websockets", python("ws_websockets.py"), schemes=WS),
    Client("undici", node("fetch_undici.js")),
    Client("ws with an agent", node("ws_agent.js"), schemes=WS),
    # NODE_USE_ENV_PROXY came with Node 24 and was carried back to 22.21.
    *(
        [Client("node fetch", node("fetch_builtin.js"))]
        if node_version() >= (22, 21) and node_version()[0] != 23
        else []
    ),
)


def trust(lab: Lab) -> dict[str, str]:
    """The variables by which each client finds the lab's CA, and Node its modules."""
    names = (
        *("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS"),
        "GIT_SSL_CAINFO",
    )
    return {**dict.fromkeys(names, str(lab.ca_file)), "NODE_PATH": NODE_MODULES}

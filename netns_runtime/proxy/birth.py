"""The certificate authority's first moments: made before the proxy is imported, told at once.

The supervisor needs the certificate for CMD's files and waits for it. Knows nothing of trio or of
the rest of the proxy, and ends with an `Authority` whose certificate is on its way.
"""

from __future__ import annotations

import json
import os
import socket
from typing import TYPE_CHECKING

from netns_runtime.proxy import privileges

if TYPE_CHECKING:
    from netns_runtime.proxy.ca import Authority


def announced_authority(control_fd: int) -> Authority:
    """Make the sandbox's authority and send its certificate, never its key, to the supervisor."""
    privileges.make_unreadable()
    from netns_runtime.proxy.ca import Authority

    authority = Authority()
    message = {"kind": "ca", "pem": authority.pem.decode("ascii")}
    control = socket.socket(fileno=os.dup(control_fd))
    with control:
        control.send(json.dumps(message).encode("ascii"))
    return authority


def warmed_up(authority: Authority) -> None:
    """Do once what a first connection does: Python and OpenSSL load some of their parts then."""
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=authority.pem.decode("ascii"))
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = authority.context_for("localhost", None).wrap_bio(up, down, server_side=True)
    client = context.wrap_bio(down, up, server_hostname="localhost")
    for _ in range(3):
        for side in (client, server):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue

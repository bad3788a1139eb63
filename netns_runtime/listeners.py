"""The proxy's sockets inside the gateway, made by root and handed over.

Each accepts only what was meant for it: the explicit port on 10.200.0.1 alone, the resolver there
too, and the transparent sockets, which are bound to any address because TPROXY hands them
connections to addresses that are nobody's; the gateway's rules keep everybody else away from them.
Call inside the gateway's namespace. Raises StepError.
"""

from __future__ import annotations

import socket
from typing import Final

from netns_runtime import layout
from netns_runtime.errors import step_error

BACKLOG: Final = 4096
# include/uapi/linux/in.h and in6.h
IP_TRANSPARENT: Final = 19
IPV6_TRANSPARENT: Final = 75


def explicit_socket() -> socket.socket:
    """The explicit proxy's listening socket."""
    return _listening(socket.AF_INET, str(layout.GATEWAY_IPV4), layout.PROXY_PORT)


def resolver_sockets() -> tuple[socket.socket, socket.socket]:
    """The policy resolver's UDP socket and TCP listening socket."""
    step = f"resolver socket at {layout.GATEWAY_IPV4}:{layout.DNS_PORT} in the gateway"
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    try:
        datagrams.bind((str(layout.GATEWAY_IPV4), layout.DNS_PORT))
        listener = _listening(socket.AF_INET, str(layout.GATEWAY_IPV4), layout.DNS_PORT)
    except OSError as error:
        datagrams.close()
        raise step_error(step, error) from error
    return datagrams, listener


def transparent_sockets(*, has_ipv6: bool = True) -> tuple[socket.socket, ...]:
    """The listening sockets that TPROXY hands redirected connections to, IPv4 first."""
    places = [(socket.AF_INET, "0.0.0.0")]
    if has_ipv6:
        places.append((socket.AF_INET6, "::"))
    made: list[socket.socket] = []
    try:
        for family, address in places:
            made.append(_listening(family, address, layout.TRANSPARENT_PORT, transparent=True))
    except BaseException:
        for sock in made:
            sock.close()
        raise
    return tuple(made)


def _listening(
    family: socket.AddressFamily, address: str, port: int, *, transparent: bool = False
) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if transparent and family == socket.AF_INET:
            listener.setsockopt(socket.IPPROTO_IP, IP_TRANSPARENT, 1)
        elif transparent:
            listener.setsockopt(socket.IPPROTO_IPV6, IPV6_TRANSPARENT, 1)
        listener.bind((address, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise step_error(f"listening on {address}:{port} in the gateway", error) from error
    return listener

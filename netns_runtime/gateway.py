"""One sandbox's gateway as its supervisor holds it: the namespace, its rules and its sockets.

Everything here happens inside the gateway, on threads that are thrown away. Raises StepError.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from netns_runtime.firewall import nft
from netns_runtime.firewall.ruleset import gateway_ruleset
from netns_runtime.listeners import explicit_socket, resolver_sockets, transparent_sockets
from netns_runtime.namespace import netns
from netns_runtime.namespace.netlink import kernel_has_ipv6

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from netns_runtime.firewall.nft import Counters
    from netns_runtime.firewall.ruleset import Listed


@dataclass(frozen=True, slots=True)
class Gateway:
    """`fd` is borrowed. `redirect` says whether clients that ignore the proxy are carried."""

    fd: int
    redirect: bool

    def load(self, listed: Sequence[Listed]) -> None:
        """Load the rules and compare them with what the kernel lists."""
        ruleset = gateway_ruleset(redirect=self.redirect, listed=listed)
        netns.run_in(self.fd, lambda: nft.load(ruleset))

    def update(self, listed: Sequence[Listed]) -> None:
        """Replace the listed addresses, in one transaction."""
        if self.redirect:
            netns.run_in(self.fd, lambda: nft.update_redirect(listed))

    def counters(self) -> Counters:
        """What the rules have counted until now."""
        return netns.run_in(self.fd, nft.read_counters)

    def sockets(self, stack: ExitStack) -> list[tuple[str, socket.socket]]:
        """The proxy's sockets by the name it knows them by; `stack` closes ours."""

        def make() -> list[tuple[str, socket.socket]]:
            with ExitStack() as unless_done:
                made = [("explicit", explicit_socket())]
                unless_done.callback(made[0][1].close)
                for name, sock in zip(("dns_udp", "dns_tcp"), resolver_sockets(), strict=True):
                    made.append((name, sock))
                    unless_done.callback(sock.close)
                if self.redirect:
                    found = transparent_sockets(has_ipv6=kernel_has_ipv6())
                    made += [("transparent", sock) for sock in found]
                unless_done.pop_all()
            return made

        made = netns.run_in(self.fd, make)
        for _, sock in made:
            stack.callback(sock.close)
        return made

"""Who dialled a flow, asked by the proxy, which holds nothing but a read-only descriptor of a map.

An answer is a copy; it stays right when the process exits. None means the kernel has no record:
an entry evicted by 16,384 newer ones, a loopback flow, or one the hooks did not see.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from netns_runtime import layout
from netns_runtime.probes import syscall
from netns_runtime.probes.records import OWNER, flow_key, owner_value

if TYPE_CHECKING:
    from netns_runtime.owner import Owner
    from netns_runtime.probes.records import Address


class OwnerTable:
    """The owners of one sandbox's flows. `fd` is borrowed; `cookie` is the sandbox's."""

    def __init__(self, fd: int, cookie: int) -> None:
        self.fd = fd
        self.cookie = cookie

    def owner_of(
        self,
        ip: str,
        port: int,
        destination: Address = layout.GATEWAY_IPV4,
        destination_port: int = layout.PROXY_PORT,
    ) -> Owner | None:
        """The process that dialled from `ip` and source `port` to that destination, the original
        one for a redirected flow.

        The destination is part of the key because the kernel gives one source port to several
        flows at once when their destinations differ; `ip` is not, a sandbox has one address.
        """
        key = flow_key(self.cookie, port, destination, destination_port)
        value = syscall.lookup(self.fd, key, OWNER.size)
        return owner_value(value) if value is not None else None

"""The veth pair between a sandbox and its gateway, as a list of operations, and their execution.

`link_plan` is pure: it gives operations that can describe themselves (`--dry-run`) and that
`apply_links` sends with pyroute2, the only import of it. Each operation runs inside the sandbox or
the gateway, never in the host's namespace. A refusal by the kernel names the operation.
"""

from __future__ import annotations

import importlib.util
import os
import socket
import sys
import types
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from netns_runtime import layout
from netns_runtime.errors import step_error
from netns_runtime.namespace.netns import run_in

if TYPE_CHECKING:
    from collections.abc import Iterable
    from ipaddress import IPv4Address, IPv6Address

Place = Literal["sandbox", "gateway"]

RTN_LOCAL: Final = 2
RT_SCOPE_HOST: Final = 254
RT_SCOPE_LINK: Final = 253
# Static entries: neither side ever asks who has an address.
NUD_PERMANENT: Final = 0x80
# The address is used at once, without duplicate address detection (rtnetlink(7)).
IFA_F_NODAD: Final = 0x02


@dataclass(frozen=True, slots=True)
class Operation:
    """One change inside one namespace: `verb` says which, `text` says it as a person would."""

    place: Place
    verb: Literal["sysctl", "veth", "up", "address", "neighbour", "route", "rule"]
    text: str
    arguments: tuple[tuple[str, Any], ...]

    def describe(self) -> str:
        return f"{self.place}: {self.text}"


def _operation(place: Place, verb: Any, text: str, **arguments: Any) -> Operation:
    return Operation(place, verb, text, tuple(arguments.items()))


def _sysctl(place: Place, key: str, value: str) -> Operation:
    return _operation(place, "sysctl", f"sysctl {key}={value}", key=key, value=value)


def _sysctls(has_ipv6: bool) -> Iterable[Operation]:
    # A reject by ICMP that the kernel rate-limits would leave a client waiting.
    yield _sysctl("gateway", "net.ipv4.icmp_ratelimit", "0")
    # New namespaces inherit the host's IPv4 settings (net.core.devconf_inherit_init_net).
    yield _sysctl("gateway", "net.ipv4.ip_forward", "0")
    if has_ipv6:
        yield _sysctl("gateway", "net.ipv6.icmp.ratelimit", "0")
        for place in ("gateway", "sandbox"):
            # No link-local addresses: nothing of ours listens there, nothing is reachable there.
            yield _sysctl(place, "net.ipv6.conf.default.addr_gen_mode", "1")
            yield _sysctl(place, "net.ipv6.conf.default.accept_ra", "0")


def _side(place: Place, has_ipv6: bool) -> Iterable[Operation]:
    is_sandbox = place == "sandbox"
    link = layout.SANDBOX_LINK if is_sandbox else layout.GATEWAY_LINK
    peer_mac = layout.GATEWAY_MAC if is_sandbox else layout.SANDBOX_MAC
    pairs: list[tuple[IPv4Address | IPv6Address, IPv4Address | IPv6Address]] = [
        (
            layout.SANDBOX_IPV4 if is_sandbox else layout.GATEWAY_IPV4,
            layout.GATEWAY_IPV4 if is_sandbox else layout.SANDBOX_IPV4,
        )
    ]
    if has_ipv6:
        pairs.append(
            (
                layout.SANDBOX_IPV6 if is_sandbox else layout.GATEWAY_IPV6,
                layout.GATEWAY_IPV6 if is_sandbox else layout.SANDBOX_IPV6,
            )
        )
    if is_sandbox and has_ipv6:
        # The kernel routes fe80::/64 to the link whether we want it or not, and would solicit
        # neighbours there for minutes. The probe refuses these too, but must not be needed.
        yield _operation(
            place,
            "rule",
            "ip rule add to fe80::/10 unreachable",
            dst="fe80::",
            dst_len=10,
            priority=1,
            action="unreachable",
            family=socket.AF_INET6,
        )
    yield _operation(place, "up", "ip link set lo up", link="lo")
    yield _operation(place, "up", f"ip link set {link} up", link=link)
    for own, peer in pairs:
        family = socket.AF_INET if own.version == 4 else socket.AF_INET6
        flags: dict[str, int] = {} if own.version == 4 else {"flags": IFA_F_NODAD}
        # Host routes: with a prefix on the link the sandbox would ask for neighbours that nobody
        # answers for, and wait for three seconds.
        prefix = own.max_prefixlen
        yield _operation(
            place,
            "address",
            f"ip address add {own}/{prefix} dev {link}",
            link=link,
            address=str(own),
            prefixlen=prefix,
            family=family,
            **flags,
        )
        yield _operation(
            place,
            "neighbour",
            f"ip neighbour add {peer} lladdr {peer_mac} dev {link}",
            link=link,
            dst=str(peer),
            lladdr=peer_mac,
            family=family,
            state=NUD_PERMANENT,
        )
        yield _operation(
            place,
            "route",
            f"ip route add {peer}/{prefix} dev {link}",
            link=link,
            dst=f"{peer}/{prefix}",
            family=family,
            **({"scope": RT_SCOPE_LINK} if own.version == 4 else {}),
        )
        any_address = "0.0.0.0/0" if own.version == 4 else "::/0"
        if is_sandbox:
            yield _operation(
                place,
                "route",
                f"ip route add {any_address} via {peer}",
                dst=any_address,
                gateway=str(peer),
                family=family,
            )
        else:
            yield _operation(
                place,
                "route",
                f"ip route add local {any_address} dev lo",
                link="lo",
                dst=any_address,
                type=RTN_LOCAL,
                scope=RT_SCOPE_HOST,
                family=family,
            )


def link_plan(*, has_ipv6: bool = True) -> tuple[Operation, ...]:
    """Every change to both namespaces, in order."""
    veth = _operation(
        "gateway",
        "veth",
        f"ip link add {layout.GATEWAY_LINK} type veth peer {layout.SANDBOX_LINK} netns sandbox",
    )
    return (
        *_sysctls(has_ipv6),
        veth,
        *_side("gateway", has_ipv6),
        *_side("sandbox", has_ipv6),
    )


def kernel_has_ipv6() -> bool:
    """False where the kernel was started with ipv6.disable=1 or has no IPv6."""
    return os.path.exists("/proc/sys/net/ipv6/conf/default")


def _import_iproute() -> Any:
    # pyroute2/__init__.py imports every subsystem (100 ms); rtnetlink alone takes half of that.
    if "pyroute2" not in sys.modules:
        spec = importlib.util.find_spec("pyroute2")
        if spec is not None and spec.submodule_search_locations:
            package = types.ModuleType("pyroute2")
            package.__path__ = list(spec.submodule_search_locations)
            package.__spec__ = spec
            sys.modules["pyroute2"] = package
    from pyroute2.iproute.linux import IPRoute

    return IPRoute


def _write_sysctl(key: str, value: str) -> None:
    path = "/proc/sys/" + key.replace(".", "/")
    with open(path, "w", encoding="ascii") as file:
        file.write(value)


def apply_links(plan: Iterable[Operation], *, sandbox_fd: int, gateway_fd: int) -> None:
    """Apply the plan. Raises StepError naming the operation that the kernel refused."""
    iproute = _import_iproute()
    operations = list(plan)

    def run(place: Place) -> None:
        with iproute() as ip:
            for operation in operations:
                if operation.place == place:
                    try:
                        _apply(ip, operation, sandbox_fd)
                    except Exception as error:
                        raise _named(operation, error) from error

    run_in(gateway_fd, lambda: run("gateway"))
    run_in(sandbox_fd, lambda: run("sandbox"))


def _named(operation: Operation, error: Exception) -> Exception:
    code = getattr(error, "code", None)
    if isinstance(code, int):
        error = OSError(code, os.strerror(code))
    remedy = ""
    if operation.verb == "veth":
        remedy = "the kernel needs veth (modprobe veth)"
    return step_error(operation.describe(), error, remedy=remedy)


def _apply(ip: Any, operation: Operation, sandbox_fd: int) -> None:
    arguments = dict(operation.arguments)
    if operation.verb == "sysctl":
        _write_sysctl(arguments["key"], arguments["value"])
        return
    if operation.verb == "veth":
        ip.link(
            "add",
            ifname=layout.GATEWAY_LINK,
            kind="veth",
            address=layout.GATEWAY_MAC,
            peer={
                "ifname": layout.SANDBOX_LINK,
                "address": layout.SANDBOX_MAC,
                "net_ns_fd": sandbox_fd,
            },
        )
        return
    if operation.verb == "rule":
        ip.rule("add", **arguments)
        return
    if "link" in arguments:
        index = socket.if_nametoindex(arguments.pop("link"))
        if operation.verb == "up":
            ip.link("set", index=index, state="up")
        elif operation.verb == "address":
            ip.addr("add", index=index, **arguments)
        elif operation.verb == "neighbour":
            ip.neigh("add", ifindex=index, **arguments)
        else:
            ip.route("add", oif=index, **arguments)
        return
    ip.route("add", **arguments)

"""Who a connection is for, and whether the client's first words agree with that. Pure.

`target_of` names the host of a redirected connection; `fault_of_first` judges a ClientHello and
other first bytes, `fault_of_host` a request, by the name that the decision was about. A virtual
address and a CONNECT prove the name to dial; SNI and Host say whom the client will talk to behind
it, and both must be the same host, or fronting would be a way around the policy. A fault is a
`Refusal`, None is no fault.
"""

from __future__ import annotations

from ipaddress import IPv6Address, ip_address
from typing import TYPE_CHECKING, Final

from netns_runtime import layout
from netns_runtime.address import AddressError, HostPort, parse_authority, parse_host
from netns_runtime.policy.requests import terminates
from netns_runtime.policy.secrets import bound_to
from netns_runtime.proxy.refuse import Refusal
from netns_runtime.wire.clienthello import ClientHello
from netns_runtime.wire.sniff import Kind

if TYPE_CHECKING:
    from netns_runtime.policy import Endpoint
    from netns_runtime.proxy.flow import Flow
    from netns_runtime.proxy.sandbox import NameSource, Sandbox
    from netns_runtime.wire.forward import AbsoluteTarget
    from netns_runtime.wire.head import RequestHead

# What a browser would speak TLS or HTTP to: there a name is always to be had.
WEB_PORTS: Final = frozenset({80, 443})
# Where `inspect` may wait for the client's first words: nobody's server speaks first there.
INSPECTED_PORTS: Final = frozenset({443, 8443})
_OURS: Final = frozenset(
    {layout.GATEWAY_IPV4, layout.GATEWAY_IPV6, layout.SANDBOX_IPV4, layout.SANDBOX_IPV6}
)


def target_of(destination: tuple[str, int], names: NameSource | None) -> HostPort | Refusal:
    """The target of a redirected connection, by its original destination."""
    address = ip_address(destination[0].partition("%")[0])
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    port = destination[1]
    if address in _OURS:
        return _prohibited(address, port, "the gateway's own address carries no redirected flow")
    if address in layout.VIRTUAL_IPV4 or address in layout.VIRTUAL_IPV6:
        name = names.name_of(address) if names is not None else None
        if name is None:
            return _prohibited(
                address,
                port,
                "this virtual address stands for no name in this sandbox",
                "resolve the name again",
            )
        return HostPort(name, port)
    return HostPort(str(address), port)


def _prohibited(address: object, port: int, why: str, remedy: str = "") -> Refusal:
    text = str(address)
    return Refusal("destination_ip_prohibited", why, remedy, text, port, address=text)


def is_raw(endpoint: Endpoint | None) -> bool:
    """Whether the rule says that its bytes are no HTTP, whatever they look like."""
    inspection = endpoint.inspection if endpoint is not None else None
    return inspection is not None and inspection.protocol == "tcp"


def may_be_nameless(endpoint: Endpoint | None, target: HostPort) -> bool:
    """Whether TLS may go without a name that we can see: where the rule says so, for an address,
    and on a port of its own, since a rule that names port 5432 means whatever speaks there."""
    if target.address is not None:
        return True
    if endpoint is None:
        return False
    inspection = endpoint.inspection
    if inspection is None or inspection.protocol is None:
        skips = inspection is not None and inspection.tls == "skip"
        return skips or target.port not in WEB_PORTS
    return inspection.protocol == "tcp"


def is_to_be_terminated(sandbox: Sandbox, flow: Flow) -> bool:
    """Whether the flow's requests are ours to see: its rule says so, a secret may go there, or
    `inspect` wants them all."""
    config = sandbox.config
    wanted = config.inspect and flow.target.port in INSPECTED_PORTS
    return terminates(flow.decision, wanted or bool(bound_to(config.secrets, flow.target.host)))


def fault_of_first(
    flow: Flow, first: ClientHello | Kind, *, is_terminated: bool = False
) -> Refusal | None:
    """Judge the first bytes of a connection; HTTP/1 is judged request by request.

    Where the flow is terminated, its name need not be seen, since upstream is asked for the
    target's in any case; but what speaks neither TLS nor HTTP cannot be looked into.
    """
    target, endpoint = flow.target, flow.decision.endpoint
    if first is Kind.HTTP1 or (first is Kind.OPAQUE and not is_terminated):
        return None
    nameless = is_terminated or may_be_nameless(endpoint, target)
    if is_terminated and not isinstance(first, ClientHello):
        return fault(
            flow,
            "http_unverifiable",
            f"requests to {target} are looked into, and this is neither TLS nor HTTP/1",
            f"list {target} in a policy with `tls: skip` or `protocol: tcp`",
        )
    if first is Kind.HTTP2:
        if nameless or is_raw(endpoint):
            return None
        return fault(
            flow,
            "http_unverifiable",
            f"HTTP/2 without TLS to {target} cannot be checked",
            f"use HTTP/1.1, or list {target} in a policy with `protocol: tcp`",
        )
    hello = first if isinstance(first, ClientHello) else ClientHello()
    skip = f"list {target} in a policy with `tls: skip` or `protocol: tcp`"
    if hello.server_name is not None and not _is_host(hello.server_name, target.host):
        return fault(
            flow,
            "sni_mismatch",
            f"the connection is to {target.host} and its TLS asks for {hello.server_name!a}",
            "connect to the name that TLS asks for, and allow that",
        )
    if nameless:
        return None
    if hello.server_name is None:
        why = f"TLS to {target} names no host (no SNI), so it cannot be checked"
        return fault(flow, "sni_missing", why, f"let the client send the name, or {skip}")
    if hello.has_ech:
        why = f"TLS to {target} may hide another name (Encrypted Client Hello)"
        return fault(flow, "ech_unverifiable", why, f"turn ECH off in the client, or {skip}")
    return None


def fault_of_host(flow: Flow, head: RequestHead, named: AbsoluteTarget) -> Refusal | None:
    """Judge one request inside a connection to one host."""
    target = flow.target
    hosts = [value.decode("latin-1") for value in head.values(b"host")]
    authorities = [named.authority] if named.authority else []
    for authority in hosts + authorities:
        if not _is_authority(authority, target):
            return fault(
                flow,
                "host_mismatch",
                f"the connection is to {target} and its request is for {authority!a}",
                "connect to the host that the request names, and allow that",
            )
    if head.method == "CONNECT":
        return fault(flow, "host_mismatch", f"CONNECT inside a connection to {target}")
    return None


def fault(flow: Flow, reason: str, detail: str, remedy: str = "") -> Refusal:
    """A refusal of a flow by what its client sent."""
    target = flow.target
    return Refusal(
        *(reason, detail, remedy, target.host, target.port),
        rule=flow.decision.rule,
        address=flow.address,
    )


def _is_host(text: str, host: str) -> bool:
    try:
        return parse_host(text) == host
    except AddressError:
        return False


def _is_authority(text: str, target: HostPort) -> bool:
    try:
        return parse_authority(text, target.port) == target
    except AddressError:
        return False

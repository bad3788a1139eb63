"""Whether a policy lets an owner reach a target, and if not, which line would let it.

`decide` is pure. More specific wins: of the endpoints that match, the narrowest one is the
decision's, and its `allowed_ips` are what the address is screened with. What no rule allows is
refused. A refusal says how near the policy came (the host on another port, another executable),
because that is what its reader has to change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from netns_runtime.policy.hosts import host_matches, specificity

if TYPE_CHECKING:
    from netns_runtime.address import HostPort
    from netns_runtime.owner import Owner
    from netns_runtime.policy.rules import Binary, Candidate, Endpoint, Network, Policy, Rule

ALLOWED: Final = "allowed"
DENIED: Final = "http_request_denied"  # RFC 9209, section 2.3.9


@dataclass(frozen=True, slots=True)
class Decision:
    """What the policy says of one flow.

    `reason` is "allowed" or an RFC 9209 error type. `rule` is the rule's text: the one that
    allowed, or the one that came nearest. `detail` is one sentence without its full stop, `remedy`
    the flag or policy line that would allow the flow ("" when allowed); both are printable ASCII.
    `matching`, of an allowed flow, is every rule and endpoint for that host, port and owner: its
    requests are judged by all of them together (requests.py).
    """

    action: Literal["allow", "refuse"]
    reason: str
    rule: str | None
    detail: str
    remedy: str = ""
    allowed_ips: tuple[Network, ...] = ()
    endpoint: Endpoint | None = None
    matching: tuple[Candidate, ...] = ()

    @property
    def is_allowed(self) -> bool:
        """True when the flow may go on to screening."""
        return self.action == "allow"


def decide(policy: Policy, target: HostPort, owner: Owner | None = None) -> Decision:
    """Judge one flow by the policy."""
    at_host = [
        candidate for candidate in policy.candidates(target.host) if _covers(candidate[1], target)
    ]
    at_port = [candidate for candidate in at_host if _has_port(candidate[1], target.port)]
    owned = [candidate for candidate in at_port if owner_fault(candidate[0], owner) is None]
    usable = [candidate for candidate in owned if candidate[1].unenforced is None]
    if usable:
        rule, endpoint = max(usable, key=_rank)
        return Decision(
            "allow",
            ALLOWED,
            rule.text,
            f"{rule.text} allows {target}",
            "",
            endpoint.allowed_ips,
            endpoint,
            tuple(owned),
        )
    if owned:
        return _refused_unenforced(target, max(owned, key=_rank))
    if at_port:
        return _refused_owner(target, max(at_port, key=_rank), owner)
    if at_host:
        return _refused_port(target, max(at_host, key=_rank))
    return _refused_host(policy, target)


def matching(policy: Policy, target: HostPort, owner: Owner | None) -> list[Candidate]:
    """Every rule and endpoint for this host, port and owner, those that allow nothing included."""
    return [
        candidate
        for candidate in policy.candidates(target.host)
        if _covers(candidate[1], target)
        and _has_port(candidate[1], target.port)
        and owner_fault(candidate[0], owner) is None
    ]


def owner_fault(rule: Rule, owner: Owner | None) -> str | None:
    """None if the rule applies to this owner, else why not."""
    if rule.binaries is None:
        return None
    if not rule.binaries:
        return "its `binaries` is empty and names nobody"
    if owner is None:
        return "it is for certain executables and the process is unknown"
    if not owner.exe_inode:
        return f"it is for certain executables and that of process {owner.pid} could not be read"
    if any(_is_binary(binary, owner) for binary in rule.binaries):
        return None
    named = ", ".join(_shown(binary.path) for binary in rule.binaries)
    who = _shown(owner.exe) if owner.exe else f"process {owner.pid} ({_shown(owner.comm)})"
    if all(not binary.identities for binary in rule.binaries):
        return f"none of its executables ({named}) exists out of CMD's reach; this is {who}"
    return f"it is for {named} and this is {who}"


def _is_binary(binary: Binary, owner: Owner) -> bool:
    # btrfs and overlayfs report another device in stat(2) than the kernel's inode has, so there the
    # path, as the host sees it, stands in for the device.
    return any(
        identity.inode == owner.exe_inode
        and (identity.device == owner.exe_device or identity.path == owner.exe)
        for identity in binary.identities
    )


def _covers(endpoint: Endpoint, target: HostPort) -> bool:
    address = target.address
    if not endpoint.host:
        # Where only addresses are listed, any name may be asked for: screening holds it to them.
        return address is None or any(
            network.version == address.version and address in network
            for network in endpoint.allowed_ips
        )
    if endpoint.host == target.host:
        return True
    return address is None and host_matches(endpoint.host, target.host)


def _has_port(endpoint: Endpoint, port: int) -> bool:
    return endpoint.ports is None or port in endpoint.ports


def _rank(candidate: Candidate) -> tuple[tuple[int, int, int, int], bool, bool, bool]:
    rule, endpoint = candidate
    return (
        specificity(endpoint.host),
        endpoint.ports is not None,
        rule.binaries is not None,
        bool(endpoint.allowed_ips),
    )


def _refused_owner(target: HostPort, candidate: Candidate, owner: Owner | None) -> Decision:
    rule, endpoint = candidate
    fault = owner_fault(rule, owner)
    remedy = f"--allow {target} for every process"
    if rule.binaries and owner is not None and owner.exe:
        path = _shown(owner.exe)
        remedy = f"add `- path: {path}` to `binaries` of {rule.text}, or {remedy}"
    detail = f"{rule.text} allows {target}, but {fault}"
    return Decision("refuse", DENIED, rule.text, detail, remedy, (), endpoint)


def _refused_unenforced(target: HostPort, candidate: Candidate) -> Decision:
    rule, endpoint = candidate
    detail = (
        f"{rule.text} allows {target} with {endpoint.unenforced}, which this version cannot apply"
    )
    remedy = f"--allow {target} allows every request"
    return Decision("refuse", DENIED, rule.text, detail, remedy, (), endpoint)


def _refused_port(target: HostPort, candidate: Candidate) -> Decision:
    rule, endpoint = candidate
    ports = " and ".join(map(str, endpoint.ports or ()))
    detail = f"{rule.text} allows {target.host} on port {ports} only, not {target.port}"
    return Decision("refuse", DENIED, rule.text, detail, f"--allow {target}", (), endpoint)


def _refused_host(policy: Policy, target: HostPort) -> Decision:
    detail = f"no rule allows {target}"
    for rule, endpoint in policy.candidates(""):
        if endpoint.host.startswith(("*.", "**.")):
            tail = endpoint.host.partition(".")[2]
            if tail == target.host:
                detail += f": {rule.text} covers names under {tail} and not {tail} itself"
                break
            if endpoint.host[1] == "." and target.host.endswith("." + tail):
                detail += f": {rule.text} covers one label before {tail}; `**.{tail}` covers more"
                break
    return Decision("refuse", DENIED, None, detail, f"--allow {target}")


def _shown(text: str) -> str:
    """Printable ASCII: a path or a process name is the sandbox's to choose."""
    return text if text.isascii() and text.isprintable() else ascii(text)

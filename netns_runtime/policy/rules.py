"""The values a policy is made of. All are frozen and picklable:
the supervisor sends a whole `Policy` to the proxy.

A `Rule` lets the executables it names (or, without `binaries`, any process) reach its endpoints.
An `Endpoint` is a host pattern with ports; its `requests` are what it says about requests, and
`inspection` the same as the file words it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import TYPE_CHECKING, Any, Final

from netns_runtime.policy.hosts import is_wildcard

if TYPE_CHECKING:
    from netns_runtime.policy.matchers import RequestRules
    from netns_runtime.secret import Binding

Network = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class Identity:
    """An executable as the kernel knows it; `device` is its dev_t (major << 20 | minor)."""

    inode: int
    device: int
    path: str


@dataclass(frozen=True, slots=True)
class Binary:
    """One entry of `binaries`: a path or glob, and what it was found to be at launch.

    `identities` is empty until `identify_binaries` ran; an entry without identities matches nobody.
    """

    path: str
    line: int = 0
    identities: tuple[Identity, ...] = ()


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a file says about requests on an endpoint, as it is written; `RequestRules` are what
    that means.
    """

    protocol: str | None = None
    tls: str | None = None
    enforcement: str | None = None
    access: str | None = None
    path: str | None = None
    websocket: str | None = None
    rules: tuple[dict[str, Any], ...] = ()
    deny_rules: tuple[dict[str, Any], ...] = ()
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a rule lets a flow go.

    `host` is a canonical host or pattern; "" is any host, and then `allowed_ips` is not empty.
    `ports` None is any port. `allowed_ips` empty means the usual screening (screening.py).
    `unenforced` is a restriction on requests that this version cannot apply, as the file words it;
    such an endpoint allows nothing, because part of a restriction would be none. `requests` None
    says nothing about requests: all are allowed, unless another endpoint for the same flow has
    rules, to which this one then adds nothing (as in OpenShell) save where `every_request` says so.
    """

    host: str
    ports: tuple[int, ...] | None
    allowed_ips: tuple[Network, ...] = ()
    line: int = 0
    inspection: Inspection | None = None
    unenforced: str | None = None
    requests: RequestRules | None = None
    every_request: bool = False

    def __post_init__(self) -> None:
        if not self.host and not self.allowed_ips:
            raise ValueError("an endpoint without a host needs allowed_ips")
        if self.ports is not None and not self.ports:
            raise ValueError("an endpoint needs a port")


@dataclass(frozen=True, slots=True)
class Rule:
    """Endpoints and who may use them.

    `text` is how messages and the audit name the rule: `name (file:line)` or `--allow HOST`.
    `binaries` None is any process; an empty tuple is none, as in OpenShell.
    """

    text: str
    endpoints: tuple[Endpoint, ...]
    binaries: tuple[Binary, ...] | None = None


Candidate = tuple[Rule, Endpoint]


@dataclass(frozen=True, slots=True)
class Policy:
    """Rules, none of which restricts another: what no rule allows is refused.

    `notes` are lines for the user about parts of a file that are not enforced here. `secrets` are
    the bindings of the file's secrets.
    """

    rules: tuple[Rule, ...] = ()
    notes: tuple[str, ...] = ()
    secrets: tuple[Binding, ...] = ()
    _exact: dict[str, tuple[Candidate, ...]] = field(
        init=False, repr=False, compare=False, default_factory=dict
    )
    _patterns: tuple[Candidate, ...] = field(init=False, repr=False, compare=False, default=())
    united: dict[Any, Any] = field(init=False, repr=False, compare=False, default_factory=dict)
    """What requests.py has put together from these rules, by target and owner; bounded there."""

    def __post_init__(self) -> None:
        exact: dict[str, list[Candidate]] = {}
        patterns: list[Candidate] = []
        for rule in self.rules:
            for endpoint in rule.endpoints:
                if endpoint.host and not is_wildcard(endpoint.host):
                    exact.setdefault(endpoint.host, []).append((rule, endpoint))
                else:
                    patterns.append((rule, endpoint))
        self._exact.update((host, tuple(found)) for host, found in exact.items())
        object.__setattr__(self, "_patterns", tuple(patterns))

    @staticmethod
    def merged(*policies: Policy) -> Policy:
        """One policy that allows what any of them allows."""
        return Policy(
            tuple(rule for policy in policies for rule in policy.rules),
            tuple(note for policy in policies for note in policy.notes),
            tuple(binding for policy in policies for binding in policy.secrets),
        )

    def candidates(self, host: str) -> tuple[Candidate, ...]:
        """Rules and endpoints that may concern `host`: its exact ones and every pattern."""
        return self._exact.get(host, ()) + self._patterns

    @property
    def listed(self) -> tuple[tuple[IPv4Address | IPv6Address, tuple[int, ...] | None], ...]:
        """Literal addresses that the rules name, with their ports; None is any port."""
        found: dict[IPv4Address | IPv6Address, set[int] | None] = {}
        for rule in self.rules:
            for endpoint in rule.endpoints:
                if endpoint.unenforced is not None:
                    continue
                try:
                    address = ip_address(endpoint.host)
                except ValueError:
                    continue
                ports = found.setdefault(address, set())
                if endpoint.ports is None or ports is None:
                    found[address] = None
                else:
                    ports.update(endpoint.ports)
        return tuple(
            (address, None if ports is None else tuple(sorted(ports)))
            for address, ports in found.items()
        )

    @property
    def hosts(self) -> tuple[str, ...]:
        """Every host or pattern that the rules name, for listings."""
        named = {endpoint.host for rule in self.rules for endpoint in rule.endpoints}
        return tuple(sorted(named - {""}))


EMPTY: Final = Policy()


def network_of(address: IPv4Address | IPv6Address) -> Network:
    """The network that holds this one address."""
    return IPv4Network(address) if isinstance(address, IPv4Address) else IPv6Network(address)

"""Reads an OpenShell policy file as a `Policy`.

What is not known is an error, what this version cannot enforce allows nothing (schema.py), and what
OpenShell enforces elsewhere becomes a note. Two differences are deliberate: a rule without the key
`binaries` is for every process, where OpenShell lets it match none (`binaries: []` matches none
here too), and without `enforcement` rules are enforced, where OpenShell only audits. Ends in a
Policy or in one UsageError with file, line and key.
"""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import TYPE_CHECKING, Any

from netns_runtime.address import AddressError
from netns_runtime.policy import schema
from netns_runtime.policy.hosts import canonical_pattern
from netns_runtime.policy.load_requests import ENFORCED, read_requests
from netns_runtime.policy.load_secrets import read_secrets
from netns_runtime.policy.nodes import Reader, compose, line_of, shown, type_of
from netns_runtime.policy.rules import Binary, Endpoint, Inspection, Policy, Rule

if TYPE_CHECKING:
    import yaml

    from netns_runtime.policy.nodes import Entry
    from netns_runtime.policy.rules import Network
    from netns_runtime.secret import Binding


def load_policy(data: bytes, name: str) -> Policy:
    """Parse the policy in `data`; `name` is what messages and rules call the file."""
    file = shown(name)
    return _Loader(file).policy(compose(data, file))


class _Loader:
    """One pass over one file; collects notes on the way."""

    def __init__(self, name: str) -> None:
        self.reader = Reader(name)
        self.name = name
        self.notes: list[str] = []

    def policy(self, root: yaml.Node) -> Policy:
        top = self.reader.mapping(root, "policy", schema.TOP)
        if "version" in top:
            self.reader.integer(top["version"][1], "version", 1, 1)
        for key, (known, remedy) in schema.SECTIONS.items():
            if key in top and type_of(top[key][1]) != "null":
                self.reader.mapping(top[key][1], key, known)
                self.note(top[key][0], f"`{key}` is not enforced by netns-run: {remedy}")
        if "network_middlewares" in top:
            self.middlewares(top["network_middlewares"])
        rules: tuple[Rule, ...] = ()
        if "network_policies" in top and type_of(top["network_policies"][1]) != "null":
            entries = self.reader.mapping(top["network_policies"][1], "network_policies")
            rules = tuple(self.rule(key, *entry) for key, entry in entries.items())
        secrets: tuple[Binding, ...] = ()
        if "secrets" in top:
            secrets = read_secrets(self.reader, top["secrets"], self.binary)
        return Policy(rules, tuple(dict.fromkeys(self.notes)), secrets)

    def note(self, node: yaml.Node, text: str) -> None:
        self.notes.append(f"{self.name}:{line_of(node)}: {text}")

    def middlewares(self, entry: Entry) -> None:
        key_node, value = entry
        if type_of(value) != "null" and self.reader.mapping(value, "network_middlewares"):
            raise self.reader.error(
                key_node,
                "network_middlewares",
                "this version has no middleware and would pass traffic unchanged",
                "remove the section if that is what you want",
            )

    def rule(self, key: str, key_node: yaml.Node, value: yaml.Node) -> Rule:
        fields = self.reader.mapping(value, key, schema.RULE)
        name = self.reader.text(fields["name"][1], "name") if "name" in fields else key
        text = f"{shown(name)} ({self.name}:{line_of(key_node)})"
        endpoints: tuple[Endpoint, ...] = ()
        if "endpoints" in fields:
            items = self.reader.sequence(fields["endpoints"][1], "endpoints")
            endpoints = tuple(map(self.endpoint, items))
        binaries: tuple[Binary, ...] | None = None
        if "binaries" in fields:
            items = self.reader.sequence(fields["binaries"][1], "binaries")
            binaries = tuple(map(self.binary, items))
        if binaries == ():
            self.note(
                fields["binaries"][0], f"`binaries` of {shown(name)} is empty: none may use it"
            )
        return Rule(text, endpoints, binaries)

    def binary(self, node: yaml.Node) -> Binary:
        fields = self.reader.mapping(node, "binaries", schema.BINARY)
        if "path" not in fields:
            raise self.reader.error(node, "binaries", "has no `path`", "give the executable's path")
        value = fields["path"][1]
        path = self.reader.text(value, "path")
        if not path.startswith("/") or ".." in path.split("/") or "\0" in path:
            raise self.reader.error(
                value, "path", f"{shown(path)} is not an absolute path without `..`"
            )
        if "harness" in fields:
            self.reader.boolean(fields["harness"][1], "harness")
        return Binary(path, line_of(value))

    def endpoint(self, node: yaml.Node) -> Endpoint:
        fields = self.reader.mapping(node, "endpoints", schema.ENDPOINT)
        allowed: tuple[Network, ...] = ()
        if "allowed_ips" in fields:
            value = fields["allowed_ips"][1]
            allowed = tuple(self.network(*item) for item in self.reader.texts(value, "allowed_ips"))
        host = self.host(node, fields, allowed)
        ports = self.ports(node, fields)
        inspection = self.inspection(fields)
        if inspection is None:
            return Endpoint(host, ports, allowed, line_of(node))
        found = read_requests(self.reader, fields, inspection, line_of(node))
        if found.missing is not None:
            self.note(
                fields[found.missing][0],
                f"this version cannot apply this restriction on requests (`{found.missing}`), so "
                f"what this endpoint allows is refused; {schema.UNENFORCED_REMEDY}",
            )
        for key, text in found.notes:
            if text != ENFORCED or not any(note.endswith(ENFORCED) for note in self.notes):
                self.note(fields[key][0], text)
        unenforced = f"a restriction on requests (`{found.missing}`)" if found.missing else None
        return Endpoint(host, ports, allowed, line_of(node), inspection, unenforced, found.rules)

    def host(self, node: yaml.Node, fields: dict[str, Entry], allowed: tuple[Network, ...]) -> str:
        if "host" not in fields:
            if allowed:
                return ""
            raise self.reader.error(
                node, "host", "is missing", "give `host`, or `allowed_ips` for any host there"
            )
        value = fields["host"][1]
        text = self.reader.text(value, "host")
        try:
            return canonical_pattern(text)
        except AddressError as error:
            if "/" in text or text.count(":") == 1 or text.startswith("["):
                what = f"{shown(text)} is more than a host"
                remedy = "give the host alone; ports go in `port`"
                raise self.reader.error(value, "host", what, remedy) from None
            remedy = "give a name, *.example.com or an IP address; ports go in `port`"
            raise self.reader.error(value, "host", str(error), remedy) from None

    def ports(self, node: yaml.Node, fields: dict[str, Entry]) -> tuple[int, ...]:
        if "port" in fields and "ports" in fields:
            raise self.reader.error(
                fields["ports"][0], "ports", "given beside `port`", "keep one of them"
            )
        if "port" in fields:
            return (self.reader.integer(fields["port"][1], "port", 1, 65535),)
        found: tuple[int, ...] = ()
        if "ports" in fields:
            items = self.reader.sequence(fields["ports"][1], "ports")
            found = tuple(self.reader.integer(item, "ports", 1, 65535) for item in items)
        if not found:
            key_node = fields["ports"][0] if "ports" in fields else node
            raise self.reader.error(key_node, "port", "is missing", "give `port` or `ports`")
        return found

    def network(self, node: yaml.Node, text: str) -> Network:
        try:
            if "%" in text:
                raise ValueError("it has a zone id")
            network = ip_network(text)
        except ValueError as error:
            reason, remedy = "no address or network", "write it like 10.1.0.0/16"
            if "host bits" in str(error):
                reason, remedy = "host bits are set", f"write {ip_network(text, strict=False)}"
            raise self.reader.error(
                node, "allowed_ips", f"{shown(text)}: {reason}", remedy
            ) from None
        return _unmapped(network)

    def inspection(self, fields: dict[str, Entry]) -> Inspection | None:
        words = {
            "protocol": schema.PROTOCOLS,
            "tls": schema.TLS,
            "enforcement": schema.ENFORCEMENT,
            "access": schema.ACCESS,
            "websocket": schema.WEBSOCKET,
        }
        given: dict[str, Any] = {
            key: self.reader.choice(fields[key][1], key, choices)
            for key, choices in words.items()
            if key in fields
        }
        if "path" in fields:
            given["path"] = self.reader.text(fields["path"][1], "path")
        if "rules" in fields:
            given["rules"] = self.rules(fields["rules"][1])
        if "deny_rules" in fields:
            items = self.reader.sequence(fields["deny_rules"][1], "deny_rules")
            given["deny_rules"] = tuple(self.matcher(item, "deny_rules") for item in items)
        options = {
            key: self.reader.plain(entry[1], key)
            for key, entry in fields.items()
            if key in schema.OPTIONS
        }
        if not given and not options:
            return None
        inspection = Inspection(**given, options=options)
        self.judge(fields, inspection)
        return inspection

    def judge(self, fields: dict[str, Entry], inspection: Inspection) -> None:
        fault = schema.contradiction(inspection)
        if fault is not None:
            raise self.reader.error(fields[fault[0]][0], *fault)
        for key in inspection.options:
            if key != "allow_encoded_slash" and inspection.options[key] not in (False, None):
                self.note(fields[key][0], f"`{key}` has no effect in this version")

    def rules(self, node: yaml.Node) -> tuple[dict[str, Any], ...]:
        found = []
        for item in self.reader.sequence(node, "rules"):
            entry = self.reader.mapping(item, "rules")
            bare = next((key for key in entry if key in schema.MATCHER), None)
            if bare is not None or not entry:
                node = entry[bare][0] if bare is not None else item
                raise self.reader.error(
                    *(node, bare or "rules", "a rule wraps its matcher in `allow`"),
                    "write `- allow: {method: GET, path: /v1/**}`",
                )
            self.reader.mapping(item, "rules", {"allow"})
            found.append({"allow": self.matcher(entry["allow"][1], "allow")})
        return tuple(found)

    def matcher(self, node: yaml.Node, key: str) -> dict[str, Any]:
        entries = self.reader.mapping(node, key, schema.MATCHER)
        return {name: self.reader.plain(value, name) for name, (_, value) in entries.items()}


def _unmapped(network: IPv4Network | IPv6Network) -> Network:
    """An IPv4-mapped network as the IPv4 network it is."""
    if isinstance(network, IPv6Network) and network.prefixlen >= 96:
        inner = network.network_address.ipv4_mapped
        if inner is not None:
            return IPv4Network((inner, network.prefixlen - 96))
    return network

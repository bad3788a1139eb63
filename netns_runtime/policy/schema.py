"""OpenShell's policy schema as tables, with our additions, and what of it is applied here.

Facts from OpenShell's policy schema reference and its policy crate (version 1 of the schema,
deprecated fields included); `secrets`, `websocket` and `message` are ours. Request rules are
loaded and refused where this version cannot apply them: nobody is to believe in a rule that is not
applied.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from netns_runtime.policy.rules import Inspection

TOP: Final = frozenset(
    {
        "version",
        "filesystem_policy",
        "landlock",
        "process",
        "network_policies",
        "network_middlewares",
        "secrets",
    }
)

# Sections that OpenShell enforces by other means; they load, and a note says who does their work.
SECTIONS: Final[dict[str, tuple[frozenset[str], str]]] = {
    "filesystem_policy": (
        frozenset({"include_workdir", "read_only", "read_write"}),
        "use --read-only and --writable",
    ),
    "landlock": (frozenset({"compatibility"}), "use --read-only"),
    "process": (frozenset({"run_as_user", "run_as_group"}), "use --user"),
}

RULE: Final = frozenset({"name", "endpoints", "binaries"})
BINARY: Final = frozenset({"path", "harness"})

# Endpoint fields about credentials and the inspection of requests. None restricts what may pass.
OPTIONS: Final = frozenset(
    {
        "allow_encoded_slash",
        "allow_uninspected_credentials",
        "credential_binding",
        "credential_signing",
        "graphql_max_body_bytes",
        "graphql_persisted_queries",
        "json_rpc",
        "mcp",
        "persisted_queries",
        "request_body_credential_rewrite",
        "signing_region",
        "signing_service",
        "websocket_credential_rewrite",
    }
)
ENDPOINT: Final = OPTIONS | {
    "access",
    "allowed_ips",
    "deny_rules",
    "enforcement",
    "host",
    "path",
    "port",
    "ports",
    "protocol",
    "rules",
    "tls",
    "websocket",
}
MATCHER: Final = frozenset(
    {
        "command",
        "fields",
        "message",
        "method",
        "operation_name",
        "operation_type",
        "params",
        "path",
        "query",
        "tool",
    }
)

PROTOCOLS: Final = frozenset({"rest", "websocket", "graphql", "mcp", "json-rpc", "tcp", "sql"})
ACCESS: Final = frozenset({"read-only", "read-write", "full"})
ENFORCEMENT: Final = frozenset({"enforce", "audit"})
TLS: Final = frozenset({"skip", "terminate", "passthrough"})
WEBSOCKET: Final = frozenset({"allow", "refuse"})
SECRET: Final = frozenset({"hosts", "slots", "expose", "codings", "binaries", "plain_http"})

_NEEDS_RULES: Final = frozenset({"rest", "websocket", "graphql"})
_OPAQUE: Final = frozenset({"mcp", "json-rpc", "sql"})
_OPERATION: Final = frozenset({"operation_type", "operation_name", "fields"})
_RESTRICTING: Final = ("rules", "deny_rules", "access", "path", "websocket")
_EVERY_PATH: Final = frozenset({"**", "/**"})
UNENFORCED_REMEDY: Final = (
    "write `access: full` without rules to allow every request, "
    "or `enforcement: audit` to load rules that are not applied"
)


def contradiction(inspection: Inspection) -> tuple[str, str, str] | None:
    """The key, the reason why OpenShell itself rejects the endpoint, and a remedy; or None."""
    if inspection.protocol == "tcp":
        for key in ("access", "rules", "deny_rules", "enforcement", "path"):
            if getattr(inspection, key):
                return key, "`protocol: tcp` takes no request fields", "remove the one or the other"
    if inspection.access and inspection.rules:
        remedy = "keep `rules`, or `access`, which stands for rules of its own"
        return "rules", "`access` and `rules` cannot be combined", remedy
    if inspection.deny_rules and not inspection.protocol:
        return "deny_rules", "needs `protocol`", "add `protocol: rest` and `access` or `rules`"
    if inspection.protocol in _NEEDS_RULES and not (inspection.access or inspection.rules):
        remedy = "add `access: read-only`, `read-write` or `full`, or `rules`"
        return "protocol", f"`{inspection.protocol}` needs `access` or `rules`", remedy
    if inspection.websocket == "refuse":
        if inspection.protocol in {"tcp", "websocket"}:
            text = f"`refuse` contradicts `protocol: {inspection.protocol}`"
            return "websocket", text, "remove the one or the other"
        if inspection.tls == "skip":
            text = "nobody sees an upgrade where `tls` is `skip`"
            return "websocket", text, "remove the one or the other"
    if inspection.tls == "skip" and inspection.protocol not in {None, "tcp"}:
        text = f"`skip` cannot be combined with `protocol: {inspection.protocol}`"
        return "tls", text, "remove `tls: skip` to have requests judged, or `protocol` to have none"
    return None


def restricts(inspection: Inspection) -> bool:
    """Whether some request would have to be refused."""
    return (
        (inspection.path is not None and inspection.path not in _EVERY_PATH)
        or bool(inspection.deny_rules)
        or inspection.access not in {None, "full"}
        or inspection.websocket == "refuse"
        or (bool(inspection.rules) and not any(map(_allows_everything, inspection.rules)))
    )


def unenforced(inspection: Inspection) -> str | None:
    """The key of a restriction on requests that this version cannot apply, or None."""
    is_opaque = inspection.protocol in _OPAQUE
    if inspection.tls == "skip" or is_opaque:
        if restricts(inspection):
            return next(key for key in _RESTRICTING if getattr(inspection, key))
        return "protocol" if is_opaque and not inspection.rules else None
    rules = [rule["allow"] for rule in inspection.rules]
    if inspection.protocol == "graphql":
        if inspection.access not in {None, "full"}:
            return "access"
        if rules and not any(map(_allows_everything, inspection.rules)):
            return "rules"
        return "deny_rules" if inspection.deny_rules else None
    for key, found in (("rules", rules), ("deny_rules", list(inspection.deny_rules))):
        if any(not _OPERATION.isdisjoint(item) for item in found):
            return key
    return None


def _allows_everything(rule: dict[str, Any]) -> bool:
    allow = rule["allow"]
    return (
        allow.keys() <= {"method", "path"}
        and allow.get("method") == "*"
        and allow.get("path") in _EVERY_PATH
    )

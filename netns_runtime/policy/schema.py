"""OpenShell's policy schema as tables, and what of it this version can stand behind.

Facts from OpenShell's policy schema reference and its policy crate (version 1 of the schema,
deprecated fields included). An endpoint whose request rules would have to restrict something is
refused at load, because this version acts on hosts, ports, addresses and executables only:
nobody is to believe in a rule that is not applied.
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
}
MATCHER: Final = frozenset(
    {
        "command",
        "fields",
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

_NEEDS_RULES: Final = frozenset({"rest", "websocket", "graphql"})
_EVERY_PATH: Final = frozenset({"**", "/**"})
UNENFORCED_REMEDY: Final = (
    "write `access: full` without rules to allow every request, "
    "or `enforcement: audit` to load rules that are not applied"
)


def contradiction(inspection: Inspection) -> tuple[str, str] | None:
    """The key and the reason why OpenShell itself rejects the endpoint, or None."""
    if inspection.protocol == "tcp":
        for key in ("access", "rules", "deny_rules", "enforcement", "path"):
            if getattr(inspection, key):
                return key, "`protocol: tcp` takes no request fields"
    if inspection.access and inspection.rules:
        return "rules", "`access` and `rules` cannot be combined"
    if inspection.deny_rules and not inspection.protocol:
        return "deny_rules", "needs `protocol`"
    if inspection.protocol in _NEEDS_RULES and not (inspection.access or inspection.rules):
        return "protocol", f"`{inspection.protocol}` needs `access` or `rules`"
    if inspection.tls == "skip" and inspection.protocol not in {None, "tcp"}:
        return "tls", f"`skip` cannot be combined with `protocol: {inspection.protocol}`"
    return None


def unenforced(inspection: Inspection) -> str | None:
    """The key of a restriction on requests that this version cannot apply, or None."""
    if inspection.enforcement == "audit":
        return None
    if inspection.path is not None and inspection.path not in _EVERY_PATH:
        return "path"
    if inspection.deny_rules:
        return "deny_rules"
    if inspection.access not in {None, "full"}:
        return "access"
    if inspection.rules and not any(map(_allows_everything, inspection.rules)):
        return "rules"
    if inspection.protocol in {"mcp", "json-rpc", "sql"} and not inspection.rules:
        return "protocol"
    return None


def _allows_everything(rule: dict[str, Any]) -> bool:
    allow = rule["allow"]
    return (
        allow.keys() <= {"method", "path"}
        and allow.get("method") == "*"
        and allow.get("path") in _EVERY_PATH
    )

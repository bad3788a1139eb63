"""What OCSF requires of the classes that the audit uses, by attribute path."""

from __future__ import annotations

from typing import Any, Final

from netns_runtime.ocsf import DNS, HTTP, LIFECYCLE, NETWORK

# "required" in the schema's base_event and classes: the union over 1.0 to 1.6, dotted paths.
BASE: Final = (
    *("activity_id", "category_uid", "class_uid", "type_uid", "severity_id", "time"),
    *("metadata.version", "metadata.product.vendor_name", "metadata.product.name"),
)
ENDPOINTS: Final = ("src_endpoint", "dst_endpoint", "connection_info.direction_id")
REQUIRED: Final[dict[int, tuple[str, ...]]] = {
    NETWORK: (*BASE, *ENDPOINTS),
    HTTP: (
        *(*BASE, *ENDPOINTS, "http_request.http_method", "http_request.url.url_string"),
        "http_response.code",
    ),
    DNS: (*BASE, *ENDPOINTS, "query.hostname", "rcode_id", "query_time"),
    LIFECYCLE: (*BASE, "app.vendor_name", "app.name"),
}


def value_at(event: dict[str, Any], path: str) -> Any:
    found: Any = event
    for name in path.split("."):
        assert isinstance(found, dict), path
        assert name in found, f"{path} is missing"
        found = found[name]
    return found

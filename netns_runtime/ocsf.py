"""Audit events in the Open Cybersecurity Schema Framework, for `--audit-format ocsf`.

Names go to DNS Activity (4003), requests to HTTP Activity (4002), everything else that happens on
the network to Network Activity (4001), and a sandbox's start and end to Application Lifecycle
(6002). Every value is one that the published schema allows there, in this release and each later
1.x; what it has no place for is left out, and the event under its own names is whole in `unmapped`.
Pure: `ocsf_of` gives a new dict and never fails for an event that `event_of` made.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Any, Final

from netns_runtime import __version__, layout

VERSION: Final = "1.3.0"
"""The schema's version. Nothing is used that a later 1.x, up to 1.8.0, took back."""

NETWORK: Final = 4001
HTTP: Final = 4002
DNS: Final = 4003
LIFECYCLE: Final = 6002

_CLASS_NAMES: Final = {
    NETWORK: "Network Activity",
    HTTP: "HTTP Activity",
    DNS: "DNS Activity",
    LIFECYCLE: "Application Lifecycle",
}
_CATEGORIES: Final = {4: "Network Activity", 6: "Application Activity"}
_OPEN, _CLOSE, _RESET, _FAIL, _REFUSE, _TRAFFIC, _OTHER = 1, 2, 3, 4, 5, 6, 99
_NETWORK_NAMES: Final = {
    _OPEN: "Open",
    _CLOSE: "Close",
    _RESET: "Reset",
    _FAIL: "Fail",
    _REFUSE: "Refuse",
    _TRAFFIC: "Traffic",
}
_METHODS: Final = {
    name.upper(): (number, name)
    for number, name in enumerate(
        ("Connect", "Delete", "Get", "Head", "Options", "Post", "Put", "Trace"), 1
    )
}
_DNS_NAMES: Final = {1: "Query", 2: "Response", 6: "Traffic"}
_LIFECYCLE: Final = {"sandbox.started": (3, "Start"), "sandbox.exited": (4, "Stop")}
# RFC 9209's names of what never got a connection, or lost it.
_FAILED: Final = frozenset(
    {
        *("dns_error", "dns_timeout", "destination_not_found", "destination_unavailable"),
        *("destination_ip_unroutable", "connection_timeout", "tls_certificate_error"),
        *("tls_protocol_error", "tls_alert_received", "client_tls_error", "http_protocol_error"),
        *("http_upgrade_failed", "proxy_internal_error"),
    }
)
# IANA's numbers of what `protocol` may say; what else it says runs over TCP.
_NUMBERS: Final = {"icmp": 1, "tcp": 6, "udp": 17, "icmpv6": 58, "udplite": 136}
# hostname_t of 1.3, which knows no underscore and no dot at the end; 1.4 dropped it.
_LABEL: Final = "[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_HOSTNAME: Final = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_PORTS: Final = range(65536)
_SEVERITY: Final = {1: "Informational", 2: "Low", 3: "Medium"}
_FILE_TYPE: Final = 1  # a regular file
_PRODUCT: Final = {
    "name": "netns_runtime",
    "vendor_name": "netns_runtime",
    "version": __version__,
}


def ocsf_of(event: dict[str, Any]) -> dict[str, Any]:
    """One contract event (flat, with `event`, `time`, `sandbox`) as an OCSF event."""
    name = event["event"]
    if name in _LIFECYCLE:
        class_uid, (activity, activity_name) = LIFECYCLE, _LIFECYCLE[name]
    elif name in ("dns.answered", "dns.refused"):
        class_uid, activity = DNS, 2
        activity_name = _DNS_NAMES[activity]
    elif name == "http.request":
        class_uid = HTTP
        method = str(event.get("method", ""))
        activity, activity_name = _METHODS.get(method, (_OTHER, method or "Other"))
    else:
        class_uid, activity = NETWORK, _activity_of(event)
        activity_name = _NETWORK_NAMES[activity]
    category = class_uid // 1000
    severity = _severity_of(event)
    said: dict[str, Any] = {
        "category_uid": category,
        "category_name": _CATEGORIES[category],
        "class_uid": class_uid,
        "class_name": _CLASS_NAMES[class_uid],
        "activity_id": activity,
        "activity_name": activity_name,
        "type_uid": class_uid * 100 + activity,
        "type_name": f"{_CLASS_NAMES[class_uid]}: {_caption_of(activity, activity_name)}",
        "time": _milliseconds(event.get("time")),
        "severity_id": severity,
        "severity": _SEVERITY[severity],
        "message": _message_of(event),
        "metadata": _metadata_of(event),
        **_status_of(event),
    }
    if class_uid != LIFECYCLE:
        said |= _control_of(event)
    if profiles := _profiles_of(said, event):
        said["metadata"]["profiles"] = profiles
    if isinstance(event.get("duration_ms"), int | float):
        said["duration"] = round(event["duration_ms"])
    if isinstance(event.get("count"), int):
        said["count"] = event["count"]
    if class_uid == LIFECYCLE:
        said["app"] = {**_PRODUCT, "uid": str(event.get("sandbox", ""))}
    else:
        said |= _network_of(event)
    if class_uid == HTTP:
        said |= _http_of(event)
    elif class_uid == DNS:
        said |= _dns_of(event)
    said["unmapped"] = dict(event)
    return said


def _activity_of(event: dict[str, Any]) -> int:
    name, reason = event["event"], event.get("reason")
    if event.get("action") == "refuse" or name == "connect.refused":
        return _REFUSE
    if name in ("flow.decided", "ws.opened"):
        return _OPEN
    if name in ("flow.closed", "ws.closed"):
        if reason == "connection_refused":
            return _REFUSE
        if reason == "connection_terminated":
            return _RESET
        return _FAIL if reason in _FAILED else _CLOSE
    return _TRAFFIC


def _severity_of(event: dict[str, Any]) -> int:
    if event.get("action") == "refuse" or event["event"] in ("connect.refused", "secret.withheld"):
        return 3
    return 2 if event.get("reason") is not None else 1


def _status_of(event: dict[str, Any]) -> dict[str, Any]:
    """How it went."""
    failed = event.get("action") == "refuse" or event.get("reason") is not None
    is_noted = event.get("action") == "allow" and failed
    said: dict[str, Any] = {"status_id": 1, "status": "Success"}
    if failed and not is_noted:
        said = {"status_id": 2, "status": "Failure"}
    if event.get("reason") is not None:
        said["status_code"] = str(event["reason"])
    if event.get("detail") is not None:
        said["status_detail"] = str(event["detail"])
    return said


def _control_of(event: dict[str, Any]) -> dict[str, Any]:
    """What policy did about it: the profile `security_control`, which 6002 has from 1.5 on."""
    said: dict[str, Any] = {}
    action = event.get("action")
    if action is not None:
        denied = action == "refuse"
        said["action_id"], said["action"] = (2, "Denied") if denied else (1, "Allowed")
        said["disposition_id"], said["disposition"] = (2, "Blocked") if denied else (1, "Allowed")
        if event.get("rule") is not None:
            said["firewall_rule"] = {"name": str(event["rule"])}
    return said


def _profiles_of(said: dict[str, Any], event: dict[str, Any]) -> list[str]:
    used = {
        "security_control": "action_id" in said,
        "host": event.get("pid") is not None and said["class_uid"] != LIFECYCLE,
    }
    return [name for name, is_used in used.items() if is_used]


def _caption_of(activity: int, name: str) -> str:
    return name if activity != _OTHER else "Other"


def _metadata_of(event: dict[str, Any]) -> dict[str, Any]:
    said: dict[str, Any] = {
        "version": VERSION,
        "product": dict(_PRODUCT),
        "event_code": event["event"],
        "log_name": "audit",
        "original_time": str(event.get("time", "")),
    }
    if event.get("flow") is not None:
        said["correlation_uid"] = f"{event.get('sandbox', '')}/{event['flow']}"
    return said


def _network_of(event: dict[str, Any]) -> dict[str, Any]:
    connection: dict[str, Any] = {"direction_id": 2, "direction": "Outbound"}
    protocol = str(event.get("protocol") or "tcp")
    number = int(protocol) if protocol.isdecimal() else _NUMBERS.get(protocol)
    connection["protocol_name"] = protocol if number is not None else "tcp"
    connection["protocol_num"] = _NUMBERS["tcp"] if number is None else number
    address = str(event.get("address", ""))
    if address:
        connection["protocol_ver_id"] = 6 if ":" in address else 4
    if event.get("flow") is not None:
        connection["uid"] = str(event["flow"])
    said: dict[str, Any] = {
        "src_endpoint": {
            "name": str(event.get("sandbox", "")),
            "ip": str(layout.SANDBOX_IPV4),
        },
        "dst_endpoint": _endpoint_of(event),
        "connection_info": connection,
    }
    if number is None:
        said["app_name"] = protocol
    traffic = {key: event[key] for key in ("bytes_in", "bytes_out") if key in event}
    if traffic:
        said["traffic"] = {**traffic, "bytes": sum(traffic.values())}
    if event.get("pid") is not None:
        said["actor"] = {"process": _process_of(event)}
    return said


def _endpoint_of(event: dict[str, Any]) -> dict[str, Any]:
    said: dict[str, Any] = {}
    if event["event"].startswith("dns."):
        return {"ip": str(layout.GATEWAY_IPV4), "port": layout.DNS_PORT}
    if event.get("host") is not None:
        said |= _named(str(event["host"]))
    if event.get("address") is not None:
        said["ip"] = str(event["address"])
    if not said:
        # A request that could not be read names nobody: it was the proxy that was spoken to.
        return {"ip": str(layout.GATEWAY_IPV4), "port": layout.PROXY_PORT}
    if event.get("port") in _PORTS:
        said["port"] = event["port"]
    return said


def _named(host: str) -> dict[str, str]:
    """A host as the attribute that may hold it."""
    try:
        return {"ip": str(ip_address(host.partition("%")[0]))}
    except ValueError:
        return {"hostname" if _HOSTNAME.fullmatch(host) else "name": host}


def _process_of(event: dict[str, Any]) -> dict[str, Any]:
    said: dict[str, Any] = {"pid": event["pid"], "name": str(event.get("comm", ""))}
    exe = event.get("exe")
    if exe is not None:
        name = str(exe).rpartition("/")[2]
        said["file"] = {"name": name, "path": str(exe), "type_id": _FILE_TYPE}
    return said


def _http_of(event: dict[str, Any]) -> dict[str, Any]:
    host, path = str(event.get("host", "")), str(event.get("path", "/"))
    # No scheme and no query: the one is not in the event, the other is never written down.
    url: dict[str, Any] = {"path": path.partition("?")[0]}
    if _HOSTNAME.fullmatch(host):
        url["hostname"] = host
    if event.get("port") in _PORTS:
        url["port"] = event["port"]
    where = f"[{host}]" if ":" in host else host
    url["url_string"] = f"{where}:{event['port']}{path}" if "port" in url else f"{where}{path}"
    request: dict[str, Any] = {"url": url}
    if event.get("method") in _METHODS:
        request["http_method"] = event["method"]
    return {"http_request": request, "http_response": {"code": int(event.get("status") or 0)}}


def _dns_of(event: dict[str, Any]) -> dict[str, Any]:
    refused = event["event"] == "dns.refused"
    when = _milliseconds(event.get("time"))
    said: dict[str, Any] = {"query_time": when, "response_time": when}
    host = str(event.get("host", ""))
    if _HOSTNAME.fullmatch(host):
        said["query"] = {"hostname": host}
    # The resolver answers a refused name as one that does not exist (proxy.dnspolicy says why).
    said["rcode_id"], said["rcode"] = (3, "NXDomain") if refused else (0, "NoError")
    if event.get("address") is not None:
        address = str(event["address"])
        said["answers"] = [{"rdata": address, "type": "AAAA" if ":" in address else "A"}]
    return said


def _message_of(event: dict[str, Any]) -> str:
    where = event.get("host") or event.get("address") or ""
    port = f":{event['port']}" if where and event.get("port") is not None else ""
    what = " ".join(str(event[key]) for key in ("action", "reason") if event.get(key) is not None)
    return " ".join(part for part in (event["event"], f"{where}{port}", what) if part)


def _milliseconds(text: object) -> int:
    """RFC 3339 as milliseconds since 1970; 0 where it is none."""
    try:
        when = datetime.fromisoformat(str(text).replace("Z", "+00:00"))
    except ValueError:
        return 0
    whole = when.astimezone(UTC)
    return int(whole.timestamp()) * 1000 + whole.microsecond // 1000

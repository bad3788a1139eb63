"""What there is on the lab's internet: addresses, names and ports, as plain tables.

Read by both sides, the servers (`lab_process`) and the tests (`lab`). Addresses are documentation
ranges (RFC 5737, RFC 3849), plus private ones that a sandbox must never reach and that do answer
here: a test of screening cannot pass because nobody was listening.
"""

from __future__ import annotations

from typing import Final

PLACEHOLDER: Final = "openshell:resolve:env:"

UPLINK_LINK: Final = "up0"
INTERNET_LINK: Final = "net0"

UPLINK_IPV4: Final = "192.0.2.1"
UPLINK_IPV6: Final = "2001:db8::1"
ROUTER_IPV4: Final = "192.0.2.2"
ROUTER_IPV6: Final = "2001:db8::2"

DNS_IPV4: Final = "192.0.2.53"
DNS_IPV6: Final = "2001:db8::53"
WEB_IPV4: Final = "192.0.2.10"
WEB_IPV6: Final = "2001:db8::10"
API_IPV4: Final = "198.51.100.10"
WILD_IPV4: Final = "203.0.113.10"
SLACK_IPV4: Final = "198.51.100.30"
DISCORD_IPV4: Final = "198.51.100.40"
REAL_IPV4: Final = "198.51.100.50"
"""Everything under a real name."""
BLACKHOLE_IPV4: Final = "203.0.113.66"
"""Nobody answers: a SYN is lost."""
UNREACHABLE_IPV4: Final = "203.0.113.77"
"""The router says there is no such host (EHOSTUNREACH)."""
BLACKHOLE_IPV6: Final = "2001:db8:dead::1"

# Answering, and never to be reached from a sandbox.
FORBIDDEN_IPV4: Final = ("10.1.2.3", "172.16.5.5", "192.168.7.7", "100.64.0.1", "169.254.169.254")
FORBIDDEN_IPV6: Final = ("fd00:ec2::254", "64:ff9b::a01:203", "2002:a01:203::1")

SERVER_IPV4: Final = (
    *(ROUTER_IPV4, DNS_IPV4, WEB_IPV4, API_IPV4, WILD_IPV4, "198.51.100.20", "203.0.113.20"),
    *(SLACK_IPV4, DISCORD_IPV4, REAL_IPV4),
    *FORBIDDEN_IPV4,
)
SERVER_IPV6: Final = (ROUTER_IPV6, DNS_IPV6, WEB_IPV6, *FORBIDDEN_IPV6)

HTTP_PORTS: Final = (80, 8080)
HTTPS_PORTS: Final = (443, 8443)
ECHO_PORT: Final = 7
HALF_CLOSE_PORT: Final = 7001
"""Reads to the end, then answers with the number of bytes it got."""
SILENT_PORT: Final = 7002
"""Accepts and never says anything."""
BANNER_PORT: Final = 7003
"""Speaks first, as SMTP does, then echoes."""
RESET_PORT: Final = 7004
"""Accepts and resets."""
SSH_PORT: Final = 22
"""Served by `lab_ssh`, and only while a test asks for it."""
SMTP_PORT: Final = 25
POSTGRES_PORT: Final = 5432
REDIS_PORT: Final = 6379
CLOSED_PORT: Final = 9
"""Nobody listens: a reset."""

# Below lab.test: HTTP/2, WebSockets, and certificates that nobody should accept.
TLS_NAMES: Final = (
    *("h2", "ws", "expired", "not-yet", "selfsigned", "wronghost", "unknown-issuer"),
)

# Names that presets use. Here they are the lab's, in its DNS and under its CA, and nowhere else.
REAL_NAMES: Final = (
    *("slack.com", "*.slack.com"),
    *("discord.com", "*.discord.com", "*.discord.gg", "*.discordapp.com", "*.discordapp.net"),
    "api.telegram.org",
    *("github.com", "*.github.com", "*.githubusercontent.com"),
    *("api.anthropic.com", "api.openai.com"),
    *("integrate.api.nvidia.com", "ai.api.nvidia.com", "api.nvcf.nvidia.com"),
    *("huggingface.co", "*.huggingface.co", "hf.co", "*.hf.co"),
    *("graph.microsoft.com", "login.microsoftonline.com", "smba.trafficmanager.net"),
    *("*.botframework.com", "*.googleapis.com", "accounts.google.com"),
    *("*.atlassian.net", "api.atlassian.com"),
    *("graph.facebook.com", "*.whatsapp.net", "*.whatsapp.com"),
)

# A name, or `*.suffix`, to its records. A record is "TYPE DATA". Single words are behaviours:
# SERVFAIL, TIMEOUT (no answer), TRUNCATED (TC over UDP, whole over TCP), EMPTY (NODATA).
# A list of lists is answered in turn, one per query of an address type.
NAMES: Final[dict[str, list[str]]] = {
    "web.lab.test": [f"A {WEB_IPV4}", f"AAAA {WEB_IPV6}"],
    "v4.lab.test": [f"A {WEB_IPV4}"],
    "v6.lab.test": [f"AAAA {WEB_IPV6}"],
    "api.lab.test": [f"A {API_IPV4}"],
    "other.test": [f"A {API_IPV4}"],
    "xn--bcher-kva.test": [f"A {API_IPV4}"],
    "wild.test": [f"A {WILD_IPV4}"],
    "*.wild.test": [f"A {WILD_IPV4}"],
    "alias.lab.test": ["CNAME web.lab.test."],
    "two.lab.test": ["A 198.51.100.20", "A 203.0.113.20"],
    "slow6.lab.test": [f"AAAA {BLACKHOLE_IPV6}", f"A {WEB_IPV4}"],
    "blackhole.lab.test": [f"A {BLACKHOLE_IPV4}"],
    "unreachable.lab.test": [f"A {UNREACHABLE_IPV4}"],
    "half.lab.test": [f"A {UNREACHABLE_IPV4}", f"A {WEB_IPV4}"],
    "servfail.lab.test": ["SERVFAIL"],
    "timeout.lab.test": ["TIMEOUT"],
    "empty.lab.test": ["EMPTY"],
    "truncated.lab.test": ["TRUNCATED", f"A {WEB_IPV4}"],
    "private.lab.test": ["A 10.1.2.3"],
    "private172.lab.test": ["A 172.16.5.5"],
    "private192.lab.test": ["A 192.168.7.7"],
    "cgnat.lab.test": ["A 100.64.0.1"],
    "metadata.lab.test": ["A 169.254.169.254"],
    "metadata6.lab.test": ["AAAA fd00:ec2::254"],
    "loopback.lab.test": ["A 127.0.0.1", "AAAA ::1"],
    "mapped.lab.test": ["AAAA ::ffff:10.1.2.3"],
    "nat64.lab.test": ["AAAA 64:ff9b::a01:203"],
    "6to4.lab.test": ["AAAA 2002:a01:203::1"],
    "uplink.lab.test": [f"A {UPLINK_IPV4}", f"AAAA {UPLINK_IPV6}"],
    "mixed.lab.test": ["A 10.1.2.3", f"A {WEB_IPV4}"],
    # One host below these for each client, so that an audit line tells whose it is.
    "*.four.test": [f"A {WEB_IPV4}"],
    "*.six.test": [f"AAAA {WEB_IPV6}"],
    # Exists as well: a test of refused names cannot pass because there is no such name.
    "*.unlisted.test": [f"A {WEB_IPV4}", f"AAAA {WEB_IPV6}"],
    "slack.test": [f"A {SLACK_IPV4}"],
    "*.slack.test": [f"A {SLACK_IPV4}"],
    "discord.test": [f"A {DISCORD_IPV4}"],
    "*.discord.test": [f"A {DISCORD_IPV4}"],
    **{f"{name}.lab.test": [f"A {WEB_IPV4}"] for name in TLS_NAMES},
    "*.pool.test": [f"A {WEB_IPV4}"],
    **{name: [f"A {REAL_IPV4}"] for name in REAL_NAMES},
}

CERTIFICATE_NAMES: Final = (
    "lab.test",
    "*.lab.test",
    "other.test",
    "xn--bcher-kva.test",
    "wild.test",
    "*.wild.test",
    "*.b.wild.test",
    "*.four.test",
    "*.six.test",
    "*.unlisted.test",
    "slack.test",
    "*.slack.test",
    "discord.test",
    "*.discord.test",
    "*.pool.test",
    *REAL_NAMES,
    WEB_IPV4,
    WEB_IPV6,
    API_IPV4,
)

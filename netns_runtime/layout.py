"""Addresses, names and places that are the same for every sandbox.

Each sandbox has namespaces of its own, so all of them use these at once.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from typing import Final

GATEWAY_IPV4: Final = IPv4Address("10.200.0.1")
SANDBOX_IPV4: Final = IPv4Address("10.200.0.2")
GATEWAY_IPV6: Final = IPv6Address("fd00:c8::1")
SANDBOX_IPV6: Final = IPv6Address("fd00:c8::2")

SANDBOX_LINK: Final = "eth0"
GATEWAY_LINK: Final = "gw0"
# Locally administered (IEEE 802, second-least-significant bit of the first octet).
SANDBOX_MAC: Final = "02:c8:00:00:00:02"
GATEWAY_MAC: Final = "02:c8:00:00:00:01"

PROXY_PORT: Final = 3128
TRANSPARENT_PORT: Final = 3129
DNS_PORT: Final = 53

# RFC 2544's benchmarking range, which no host on the Internet has, and a /64 of our ULA prefix.
VIRTUAL_IPV4: Final = IPv4Network("198.18.0.0/15")
VIRTUAL_IPV6: Final = IPv6Network("fd00:c8:0:1::/64")

PREFIX: Final = "netns-runtime"
"""What every cgroup, nft table, pin and state file of ours begins with."""
NFT_TABLE: Final = "netns_runtime"
RUN_DIR: Final = Path("/run") / PREFIX
CACHE_DIR: Final = Path("/var/cache") / PREFIX

# The proxy gives up root for this uid. systemd.io/UIDS-GIDS lists 1879048192..2147483647 as unused.
PROXY_UID: Final = 2_000_003_128

"""`--dry-run`: says what a launch would do, in order, and changes nothing."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from netns_runtime import layout
from netns_runtime.cli.dry_policy import policy_lines
from netns_runtime.cli.text import printable, say
from netns_runtime.firewall.ruleset import gateway_ruleset
from netns_runtime.namespace.netlink import kernel_has_ipv6, link_plan

if TYPE_CHECKING:
    from netns_runtime.request import Request
    from netns_runtime.supplied import Supplied


def show(request: Request) -> None:
    """Print addresses, links, ruleset, probe, policy with its notes, and how CMD would enter."""
    from netns_runtime.entering import enter_plan

    has_ipv6 = kernel_has_ipv6()
    say("addresses")
    say(f"  sandbox  {layout.SANDBOX_IPV4}" + (f"  {layout.SANDBOX_IPV6}" if has_ipv6 else ""))
    say(f"  gateway  {layout.GATEWAY_IPV4}" + (f"  {layout.GATEWAY_IPV6}" if has_ipv6 else ""))
    say(f"  proxy    {layout.GATEWAY_IPV4}:{layout.PROXY_PORT}")
    say("links")
    for operation in link_plan(has_ipv6=has_ipv6):
        say(f"  {operation.describe()}")
    say("ruleset (in the gateway, nft JSON)")
    ruleset = gateway_ruleset(redirect=request.spec.redirect, listed=request.policy.listed)
    for entry in ruleset.commands:
        say(f"  {json.dumps(entry['add'])}")
    say("probe")
    for line in probe_lines(request.spec.probe):
        say(f"  {line}")
    say("policy")
    for line in policy_lines(request) or ["nothing is allowed"]:
        say(f"  {printable(line)}")
    if request.policy.notes:
        say("notes")
    for line in dict.fromkeys(request.policy.notes):
        say(f"  {printable(line)}")
    if request.supplied is not None:
        say("secrets")
        for line in secret_lines(request.supplied):
            say(f"  {printable(line)}")
    say("command")
    for line in enter_plan(request, None).describe():
        say(f"  {printable(line)}")


def probe_lines(wanted: str) -> list[str]:
    """Which hooks would judge connects, and what happens where the kernel lacks them."""
    if wanted == "nft":
        return ["none: the gateway's nft rules refuse and count"]
    from netns_runtime.probes.hooks import HOOKS

    otherwise = "netns-run fails" if wanted == "bpf" else "nft enforces and counts alone"
    names = ", ".join(hook.program for hook in HOOKS)
    return [f"cgroup programs {names}", f"where they cannot be loaded: {otherwise}"]


def secret_lines(supplied: Supplied) -> list[str]:
    """One line for each secret: its source, hosts and slots, and never its value."""
    from netns_runtime.supplied import told

    return [
        f"{entry['name']} from {supplied.sources[entry['name']]} {told(entry)}, by {entry['rule']}"
        for entry in supplied.listed()
    ]

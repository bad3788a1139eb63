"""Swaps a sandbox's policy while it runs.

`swap_policy` is one assignment for every decision that comes, and one look at each open flow: what
the new policy would refuse, by its target and owner or by the address it was dialled at, is cut;
everything else stays as it is. A secret that the new policy binds is bound as that says from then
on; one that it does not name keeps a preset's binding and loses a policy file's; an open WebSocket
ends where it could have had a secret that is bound in another way now. It waits for nothing, so no
flow sees half of either policy.
"""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

from netns_runtime.address import screen
from netns_runtime.policy import decide
from netns_runtime.policy.secrets import bound_to, may_still_read, rebound
from netns_runtime.proxy.flow import Ended
from netns_runtime.proxy.identify import is_to_be_terminated
from netns_runtime.proxy.inspect import judged_alike

if TYPE_CHECKING:
    from netns_runtime.policy import Policy
    from netns_runtime.proxy.flow import Flow
    from netns_runtime.proxy.sandbox import Sandbox
    from netns_runtime.secret import Secret

REASON: Final = "policy_changed"
# Each request of these is judged by the policy of its moment; anything else is a tunnel.
BY_REQUEST: Final = frozenset({"http", "https", "h2"})


def swap_policy(sandbox: Sandbox, policy: Policy) -> int:
    """Put `policy` in force. The number of open flows that it ended."""
    config = sandbox.config
    pairs = [
        (secret, replace(secret, binding=rebound(secret.binding, policy.secrets)))
        for secret in config.secrets
    ]
    unread = {old.name for old, new in pairs if not may_still_read(old.binding, new.binding)}
    sandbox.config = replace(
        config,
        policy=policy,
        secrets=tuple(new for _, new in pairs),
        readers=tuple(reader for reader in config.readers if reader[0] not in unread),
    )
    changed = [one for pair in pairs if _goes_elsewhere(*pair) for one in pair]
    closed = 0
    for flow in list(sandbox.flows.values()):
        why = _judge_again(sandbox, flow)
        if why is None and flow.upgrade is not None and bound_to(changed, flow.target.host):
            why = f"the secrets of this WebSocket to {flow.target} are bound in another way"
        if why is None:
            continue
        closed += 1
        ended = Ended(reason=REASON, said_by="policy", detail=why, action="refuse")
        if flow.cut is not None:
            flow.cut(ended)
        else:
            flow.cut_short = ended
    return closed


def _goes_elsewhere(old: Secret, new: Secret) -> bool:
    ways = [(one.binding.hosts, one.binding.slots, one.binding.plain_http) for one in (old, new)]
    return ways[0] != ways[1]


def _judge_again(sandbox: Sandbox, flow: Flow) -> str | None:
    """Why the flow may not go on, or None. Its decision is the new policy's afterwards."""
    config = sandbox.config
    was_looked_into = is_to_be_terminated(sandbox, flow)
    flow.policy = config.policy
    flow.decision = decide(config.policy, flow.target, flow.owner)
    if not flow.decision.is_allowed and not config.report:
        return flow.decision.detail
    is_looked_into = is_to_be_terminated(sandbox, flow)
    if is_looked_into and not was_looked_into and flow.protocol not in BY_REQUEST:
        return f"requests to {flow.target} are looked into from now on, and this is a tunnel"
    if flow.upgrade is not None and not judged_alike(config.policy, flow, *flow.upgrade):
        return f"the rules for this WebSocket to {flow.target} or for its messages have changed"
    if flow.address is None:
        return None
    reason = screen(ip_address(flow.address), config.own_addresses, flow.decision.allowed_ips)
    return None if reason is None else f"{flow.address} is not dialled any more: {reason}"

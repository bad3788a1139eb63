"""What netns-debug may ask a running supervisor: swap the policy, list the flows.

An answer that the proxy has to give comes when the proxy gives it; the supervisor never waits. A
policy that does not load changes nothing. In a swap the kernel learns new addresses first and the
proxy decides last, so at no moment does anything pass that neither policy allows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from netns_runtime.errors import NetnsError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from netns_runtime.gateway import Gateway
    from netns_runtime.policy import Policy
    from netns_runtime.probes.probe import Registration
    from netns_runtime.proxyprocess import ProxyProcess

    Answering = Callable[[dict[str, Any]], None]


class Requests:
    """Open requests of one sandbox. `identify` ties a policy's `binaries` to what they are now.

    Without `has_authority` nothing can be terminated, and a policy that needs it is not taken.
    """

    def __init__(
        self,
        *,
        gateway: Gateway,
        registration: Registration | None,
        proxy: ProxyProcess,
        identify: Callable[[Policy], Policy],
        on_policy: Callable[[str], None],
        has_authority: bool = True,
    ) -> None:
        self._gateway = gateway
        self._registration = registration
        self._proxy = proxy
        self._identify = identify
        self._on_policy = on_policy
        self._has_authority = has_authority
        self._swaps: list[Answering] = []
        self._listings: dict[int, tuple[Answering, list[dict[str, Any]]]] = {}
        self._number = 0

    def handle(self, request: dict[str, Any], answer: Answering) -> None:
        """Begin one request; `answer` is called once, now or when the proxy has answered."""
        try:
            command = request.get("command")
            if command == "policy":
                self._swap(request, answer)
            elif command == "flows":
                self._number += 1
                self._listings[self._number] = (answer, [])
                self._proxy.send({"kind": "flows", "id": self._number})
            else:
                raise UsageError(f"the sandbox does not know {command!r}", remedy="same version?")
        except (NetnsError, OSError, LookupError) as error:
            answer({"error": str(error)})

    def _swap(self, request: dict[str, Any], answer: Answering) -> None:
        from netns_runtime.policy import load_policy

        name = str(request.get("name", ""))
        policy = self._identify(load_policy(str(request.get("text", "")).encode("utf-8"), name))
        if not self._has_authority and (what := inspected_in(policy)):
            raise UsageError(
                f"{name} looks into requests to {what}, and this sandbox was started without a "
                "certificate authority",
                remedy="start it with --policy",
            )
        self._gateway.update(policy.listed)
        if self._registration is not None and self._gateway.redirect:
            self._registration.probe.set_listed(self._registration.cookie, policy.listed)
        self._proxy.set_policy(policy)
        self._on_policy(name)
        self._swaps.append(answer)

    def on_proxy(self, message: dict[str, Any]) -> None:
        """Take the proxy's answer to a request of ours."""
        if message.get("kind") == "policy" and self._swaps:
            self._swaps.pop(0)({"closed": message.get("closed", 0)})
        elif message.get("kind") == "flows":
            found = self._listings.get(int(message.get("id", 0)))
            if found is None:
                return
            answer, flows = found
            flows.extend(message.get("flows", ()))
            if not message.get("more"):
                del self._listings[int(message["id"])]
                answer({"flows": flows})


def inspected_in(policy: Policy) -> str | None:
    """The first host whose flows the policy has terminated, or None."""
    from netns_runtime.policy import Decision
    from netns_runtime.policy.requests import terminates

    for rule in policy.rules:
        for endpoint in rule.endpoints:
            found = ((rule, endpoint),)
            allowed = Decision("allow", "allowed", rule.text, "", endpoint=endpoint, matching=found)
            if terminates(allowed, has_secrets=False):
                return endpoint.host or "any host"
    return None

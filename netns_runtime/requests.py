"""What netns-debug may ask a running supervisor: swap the policy, list the flows, tell events.

An answer that the proxy has to give comes when the proxy gives it; the supervisor never waits. A
policy that does not load changes nothing. In a swap the kernel learns new addresses first and the
proxy decides last, so at no moment does anything pass that neither policy allows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from netns_runtime.errors import NetnsError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from netns_runtime.control import Caller
    from netns_runtime.feed import Feed
    from netns_runtime.gateway import Gateway
    from netns_runtime.policy import Policy
    from netns_runtime.probes.probe import Registration
    from netns_runtime.proxyprocess import ProxyProcess
    from netns_runtime.secret import Binding
    from netns_runtime.situation import Situation

    Answering = Callable[[dict[str, Any]], None]


CAPTURE_BYTES: Final = 8 << 20
"""What the proxy may have waiting for who captures packets; keys are lost past that."""


class Requests:
    """Open requests of one sandbox. `identify` ties a policy's `binaries` to what they are now;
    `bindings` are those of the secrets that have values. `on_policy` is told a swap: the file's
    name, and how the secrets are bound from then on.

    Without `has_authority` nothing can be terminated, and a policy that needs it is not taken.
    `tells` are commands that the supervisor answers at once.
    """

    def __init__(
        self,
        *,
        gateway: Gateway,
        registration: Registration | None,
        proxy: ProxyProcess,
        identify: Callable[[Policy], Policy],
        on_policy: Callable[[str, tuple[Binding, ...]], None],
        has_authority: bool = True,
        feed: Feed | None = None,
        tells: Mapping[str, Callable[[], dict[str, Any]]] | None = None,
        situation: Situation | None = None,
        bindings: tuple[Binding, ...] = (),
    ) -> None:
        self._gateway = gateway
        self._registration = registration
        self._proxy = proxy
        self._identify = identify
        self._on_policy = on_policy
        self._has_authority = has_authority
        self._feed = feed
        self._tells = tells or {}
        self._situation = situation
        self._bindings = bindings
        # A new policy takes nothing back from CMD that it has had.
        self._had = sorted(one.name for one in bindings if one.expose != "placeholder")
        self._swaps: list[tuple[Answering, tuple[str, ...]]] = []
        self._listings: dict[int, tuple[Answering, list[dict[str, Any]]]] = {}
        self._tallies: dict[int, Answering] = {}
        self._number = 0

    def handle(self, request: dict[str, Any], answer: Caller) -> None:
        """Begin one request; `answer` is called once, now or when the proxy has answered."""
        try:
            command = request.get("command")
            if command == "policy":
                self._swap(request, answer)
            elif command == "flows":
                self._number += 1
                self._listings[self._number] = (answer, [])
                self._proxy.send({"kind": "flows", "id": self._number})
            elif command == "tallies":
                self._number += 1
                self._tallies[self._number] = answer
                self._proxy.send({"kind": "tallies", "id": self._number})
            elif isinstance(command, str) and command in self._tells:
                answer(self._tells[command]())
            elif command == "capture":
                self._capture(answer, wants_secrets=request.get("secrets") is True)
            elif command == "recent" and self._feed is not None:
                self._feed.recent(lambda events, lost: answer({"events": events, "lost": lost}))
            elif command == "subscribe" and self._feed is not None:
                self._feed.subscribe(answer)
            elif command == "situation" and self._feed is not None and self._situation is not None:
                told = self._situation.told(redirect=self._gateway.redirect)
                self._feed.recent(
                    lambda events, lost: answer({**told, "events": events, "lost": lost})
                )
            else:
                raise UsageError(f"the sandbox does not know {command!r}", remedy="same version?")
        except (NetnsError, OSError, LookupError) as error:
            answer({"error": str(error)})

    def _swap(self, request: dict[str, Any], answer: Answering) -> None:
        from netns_runtime.policy import load_policy
        from netns_runtime.policy.secrets import rebound_all

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
        self._bindings, notes = rebound_all(self._bindings, policy.secrets)
        self._on_policy(name, self._bindings)
        if self._situation is not None:
            self._situation.policy = policy
        self._swaps.append((answer, notes))

    def _capture(self, caller: Caller, *, wants_secrets: bool) -> None:
        """Let the caller, who captures packets, hear from the proxy itself: nothing that is said
        between them is read here."""
        if self._had and not wants_secrets:
            raise UsageError(
                f"CMD can have the value of {', '.join(self._had)} itself, and packets may hold it",
                remedy="say --with-secrets if the file may",
            )
        caller.make_room(CAPTURE_BYTES)
        if not self._proxy.lend({"kind": "capture", "secrets": wants_secrets}, caller.fileno()):
            raise UsageError("the proxy does not keep up", remedy="try again")
        caller.close()

    def on_proxy(self, message: dict[str, Any]) -> None:
        """Take the proxy's answer to a request of ours."""
        if message.get("kind") == "policy" and self._swaps:
            answer, notes = self._swaps.pop(0)
            answer({"closed": message.get("closed", 0), "notes": list(notes)})
        elif message.get("kind") == "events" and self._feed is not None:
            self._feed.on_proxy(message)
        elif message.get("kind") == "tallies":
            waiting = self._tallies.pop(int(message.get("id", 0)), None)
            if waiting is not None:
                waiting({"tallies": message.get("tallies", [])})
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

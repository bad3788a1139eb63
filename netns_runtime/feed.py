"""Events of one sandbox for whoever debugs it: the supervisor's own and the proxy's, merged.

The proxy is asked, one batch at a time and only while somebody follows, so it never waits for a
reader and never has more than one message of ours under way; a reader that is too slow loses events
and is told how many. Nothing here can end the sandbox: a caller that goes away is forgotten.
"""

from __future__ import annotations

import contextlib
import json
import time
from typing import TYPE_CHECKING, Any, Final

from netns_runtime.recent import LIMIT, Recent

if TYPE_CHECKING:
    from collections.abc import Callable

    from netns_runtime.control import Caller
    from netns_runtime.proxyprocess import ProxyProcess

FOLLOWERS: Final = 16
SEND_BYTES: Final = 4 << 20
"""What a follower may have waiting before it loses events."""
STALE: Final = 2.0
"""Seconds without a batch after which a question is asked anew: the proxy says things now or not at
all, and a flood may have filled its socket at that moment."""


class Feed:
    """`take` is the audit's listener. `on_proxy` gets the proxy's answers."""

    def __init__(self, proxy: ProxyProcess, clock: Callable[[], float] = time.monotonic) -> None:
        self._proxy = proxy
        self._clock = clock
        self._heard = 0.0
        self._own = Recent()
        self._followers: dict[Caller, int] = {}
        self._asked: list[Callable[[list[dict[str, Any]], int], None]] = []
        self._gathered: list[dict[str, Any]] = []
        self._cursor: int | None = None

    def take(self, event: dict[str, Any]) -> None:
        """An event of the supervisor's."""
        self._own.take(event)
        if self._followers:
            self._push(event)
            self._follow()

    def recent(self, answer: Callable[[list[dict[str, Any]], int], None]) -> None:
        """Give the remembered events, oldest first, and how many there were before, once the proxy
        has told its own."""
        self._asked.append(answer)
        if len(self._asked) == 1 or self._clock() - self._heard > STALE:
            self._gathered = []
            self._ask("recent", 0)

    def subscribe(self, caller: Caller) -> None:
        """Send the caller every event from now on."""
        for other in [other for other in self._followers if other.is_gone()]:
            self._drop(other)
        if len(self._followers) >= FOLLOWERS:
            caller({"error": f"{FOLLOWERS} others follow this sandbox already"})
            return
        caller.make_room(SEND_BYTES)
        if not caller.send(b"{}"):
            caller.close()
            return
        self._followers[caller] = 0
        self._follow()

    def _follow(self) -> None:
        if self._cursor is None and self._followers:
            self._cursor = -1
            self._ask("follow", -1)

    def _ask(self, purpose: str, since: int) -> None:
        message = {"kind": "events", "for": purpose, "since": since}
        if purpose == "recent":
            self._heard = self._clock()
        if self._proxy.send(message):
            return
        if purpose == "recent":
            self._answer(0)
        else:
            self._cursor = None

    def on_proxy(self, message: dict[str, Any]) -> None:
        """Take a batch: {"kind": "events", "for", "events", "lost", "next", "more"}."""
        events = [event for event in message.get("events", ()) if isinstance(event, dict)]
        lost, following = int(message.get("lost", 0)), int(message.get("next", 0))
        if message.get("for") == "recent":
            self._gathered += events
            if message.get("more") and len(self._gathered) < 2 * LIMIT:
                self._ask("recent", following)
            else:
                self._answer(following - len(self._gathered))
            return
        for event in events:
            self._push(event)
        for follower in self._followers if lost else ():
            self._followers[follower] += lost
        if self._followers:
            self._cursor = following
            self._ask("follow", following)
        else:
            self._cursor = None

    def on_last_words(self, message: dict[str, Any]) -> None:
        """What an ending proxy still says: the last events are passed on, all else is over."""
        if message.get("kind") == "events" and message.get("for") == "follow":
            for event in message.get("events", ()):
                self._push(event)

    def _answer(self, earlier: int) -> None:
        own, lost, _ = self._own.since(0, 1 << 30)
        events = sorted([*own, *self._gathered], key=lambda event: str(event.get("time", "")))
        asked, self._asked, self._gathered = self._asked, [], []
        for answer in asked:
            answer(events, lost + max(0, earlier))

    def _push(self, event: dict[str, Any]) -> None:
        data = json.dumps({"event": event}).encode("ascii")
        for follower, lost in list(self._followers.items()):
            whole = json.dumps({"event": event, "lost": lost}).encode("ascii") if lost else data
            sent = follower.send(whole)
            if sent is None:
                self._drop(follower)
            else:
                self._followers[follower] = 0 if sent else lost + 1

    def _drop(self, follower: Caller) -> None:
        with contextlib.suppress(KeyError):
            del self._followers[follower]
        follower.close()

    def close(self) -> None:
        """End every stream."""
        for follower in list(self._followers):
            self._drop(follower)

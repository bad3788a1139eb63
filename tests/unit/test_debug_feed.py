"""The supervisor's feed: merged, bounded, and never waiting for anybody."""

from __future__ import annotations

import json
from typing import Any

from netns_runtime.feed import FOLLOWERS, Feed


class Proxy:
    """Takes questions; answers are given by the test."""

    def __init__(self, *, is_deaf: bool = False) -> None:
        self.asked: list[dict[str, Any]] = []
        self.is_deaf = is_deaf

    def send(self, message: dict[str, Any]) -> bool:
        if not self.is_deaf:
            self.asked.append(message)
        return not self.is_deaf


class Reader:
    """A follower with room for `room` messages."""

    def __init__(self, room: int = 100) -> None:
        self.room = room
        self.got: list[dict[str, Any]] = []
        self.answer: dict[str, Any] | None = None
        self.gone = self.closed = False

    def __call__(self, value: dict[str, Any]) -> None:
        self.answer = value

    def send(self, data: bytes) -> bool | None:
        if self.gone:
            return None
        if not self.room:
            return False
        self.room -= 1
        self.got.append(json.loads(data))
        return True

    def make_room(self, octets: int) -> None:
        assert octets > 0

    def is_gone(self) -> bool:
        return self.gone

    def close(self) -> None:
        self.closed = True


def event(number: int) -> dict[str, Any]:
    return {"event": "dns.refused", "time": f"2026-01-01T00:00:{number:02}Z", "port": number}


def feed_of(proxy: Proxy) -> Feed:
    any_proxy: Any = proxy
    return Feed(any_proxy)


def subscribed(feed: Feed, reader: Reader) -> Reader:
    caller: Any = reader
    feed.subscribe(caller)
    return reader


def batch(purpose: str, *numbers: int, following: int, **more: Any) -> dict[str, Any]:
    told = {"kind": "events", "for": purpose, "events": [event(n) for n in numbers]}
    return {**told, "lost": 0, "next": following, "more": False, **more}


def test_what_is_remembered_is_merged_by_time() -> None:
    proxy = Proxy()
    feed = feed_of(proxy)
    feed.take(event(2))
    answers: list[Any] = []
    feed.recent(lambda events, lost: answers.append(([e["port"] for e in events], lost)))
    assert answers == []
    feed.on_proxy(batch("recent", 1, following=6, more=True))
    assert proxy.asked[-1]["since"] == 6
    feed.on_proxy(batch("recent", 3, following=7))
    assert answers == [([1, 2, 3], 5)]


def test_a_proxy_that_cannot_be_asked_costs_only_its_own_events() -> None:
    feed = feed_of(Proxy(is_deaf=True))
    feed.take(event(2))
    answers: list[Any] = []
    feed.recent(lambda events, lost: answers.append(([e["port"] for e in events], lost)))
    assert answers == [([2], 0)]


def test_the_proxy_is_asked_only_while_somebody_follows() -> None:
    proxy = Proxy()
    feed = feed_of(proxy)
    feed.take(event(1))
    assert proxy.asked == []
    reader = subscribed(feed, Reader())
    assert [message["for"] for message in proxy.asked] == ["follow"]
    feed.on_proxy(batch("follow", 2, following=9))
    assert proxy.asked[-1] == {"kind": "events", "for": "follow", "since": 9}
    reader.gone = True
    feed.on_proxy(batch("follow", 3, following=10))
    assert reader.closed
    assert len(proxy.asked) == 2
    assert [message["event"]["port"] for message in reader.got[1:]] == [2]


def test_a_slow_reader_loses_events_and_is_told_how_many() -> None:
    feed = feed_of(Proxy())
    reader = subscribed(feed, Reader(room=2))
    for number in range(5):
        feed.take(event(number))
    reader.room = 1
    feed.take(event(9))
    assert reader.got[0] == {}, "the first message says that it began"
    assert reader.got[1:] == [{"event": event(0)}, {"event": event(9), "lost": 4}]


def test_what_the_proxy_lost_is_told_as_lost() -> None:
    feed = feed_of(Proxy())
    reader = subscribed(feed, Reader())
    feed.on_proxy({**batch("follow", following=5), "lost": 7})
    feed.take(event(1))
    assert reader.got[1:] == [{"event": event(1), "lost": 7}]


def test_there_are_so_many_followers_and_those_that_went_make_room() -> None:
    feed = feed_of(Proxy())
    readers = [subscribed(feed, Reader()) for _ in range(FOLLOWERS)]
    late = subscribed(feed, Reader())
    assert late.answer == {"error": f"{FOLLOWERS} others follow this sandbox already"}
    readers[0].gone = True
    assert subscribed(feed, Reader()).got == [{}]


def test_the_last_words_of_a_proxy_reach_the_reader() -> None:
    feed = feed_of(Proxy())
    reader = subscribed(feed, Reader())
    feed.on_last_words(batch("follow", 4, following=5))
    feed.on_last_words({"kind": "report", "line": "x"})
    assert [message["event"]["port"] for message in reader.got[1:]] == [4]
    feed.close()
    assert reader.closed

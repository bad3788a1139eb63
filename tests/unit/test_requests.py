"""What a running supervisor takes from netns-debug, and what it does not."""

from __future__ import annotations

from typing import Any

import pytest

from netns_runtime.policy import load_policy
from netns_runtime.requests import Requests, inspected_in
from netns_runtime.secret import Binding, Slot

POLICY = """
version: 1
network_policies:
  rule:
    endpoints:
      - {host: api.test, port: 443%s}
"""


class Nothing:
    """Stands for the gateway and the proxy: takes whatever it is told."""

    redirect = False

    def __init__(self) -> None:
        self.told: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *_: self.told.append(name)


def swapped(text: str, *, has_authority: bool) -> tuple[list[dict[str, Any]], list[str]]:
    """What the caller was answered, and what the proxy was told."""
    proxy: Any = Nothing()
    gateway: Any = Nothing()
    requests = Requests(
        gateway=gateway,
        registration=None,
        proxy=proxy,
        identify=lambda policy: policy,
        on_policy=lambda name, bindings: None,
        has_authority=has_authority,
    )
    answers: list[dict[str, Any]] = []
    answer: Any = answers.append
    requests.handle({"command": "policy", "name": "new.yaml", "text": text}, answer)
    return answers, proxy.told


REST = POLICY % ", protocol: rest, access: full"


def test_a_policy_that_looks_into_requests_needs_an_authority() -> None:
    answers, told = swapped(REST, has_authority=False)
    assert told == []
    [answer] = answers
    assert answer["error"].startswith("new.yaml looks into requests to api.test, and ")
    assert "\n" not in answer["error"]


@pytest.mark.parametrize(
    ("text", "has_authority"),
    [(REST, True), (POLICY % "", False), (POLICY % ", tls: skip", False)],
)
def test_any_other_policy_is_taken(text: str, has_authority: bool) -> None:
    answers, told = swapped(text, has_authority=has_authority)
    assert answers == []
    assert told == ["set_policy"]


@pytest.mark.parametrize(
    ("fields", "host"),
    [
        ("", None),
        (", tls: skip", None),
        (", protocol: tcp", None),
        (", tls: terminate", "api.test"),
        (", protocol: rest, access: read-only", "api.test"),
    ],
)
def test_names_the_first_host_that_is_looked_into(fields: str, host: str | None) -> None:
    assert inspected_in(load_policy((POLICY % fields).encode(), "p.yaml")) == host


class Caller:
    """Who asks, by the descriptor 9."""

    def __init__(self) -> None:
        self.answers: list[dict[str, Any]] = []
        self.did: list[str] = []

    def __call__(self, value: dict[str, Any]) -> None:
        self.answers.append(value)

    def __getattr__(self, name: str) -> Any:
        self.did.append(name)
        return lambda *_: 9


class Lending:
    """A proxy that takes what it is lent, or has no room for it."""

    def __init__(self, *, has_room: bool = True) -> None:
        self.has_room = has_room
        self.lent: list[tuple[dict[str, Any], int]] = []

    def lend(self, message: dict[str, Any], fd: int) -> bool:
        self.lent.append((message, fd))
        return self.has_room


def capture(proxy: Lending, expose: Any, **request: Any) -> Caller:
    lending: Any = proxy
    gateway: Any = Nothing()
    requests = Requests(
        gateway=gateway,
        registration=None,
        proxy=lending,
        identify=lambda policy: policy,
        on_policy=lambda name, bindings: None,
        bindings=(Binding("TOKEN", ("api.test",), (Slot("basic"),), expose=expose),),
    )
    caller = Caller()
    answer: Any = caller
    requests.handle({"command": "capture", **request}, answer)
    return caller


def test_who_captures_is_lent_to_the_proxy_and_let_go_of() -> None:
    proxy = Lending()
    caller = capture(proxy, "placeholder")
    assert proxy.lent == [({"kind": "capture", "secrets": False}, 9)]
    assert caller.answers == []
    assert caller.did == ["make_room", "fileno", "close"]


@pytest.mark.parametrize("expose", ["endpoint", "env"])
@pytest.mark.parametrize("said", [{}, {"secrets": False}, {"secrets": "yes"}, {"secrets": 1}])
def test_where_cmd_has_a_value_a_capture_must_ask_for_values(
    expose: str, said: dict[str, Any]
) -> None:
    proxy = Lending()
    (answer,) = capture(proxy, expose, **said).answers
    assert "CMD can have the value of TOKEN itself" in answer["error"]
    assert proxy.lent == []
    assert capture(proxy, expose, secrets=True).answers == []
    assert proxy.lent == [({"kind": "capture", "secrets": True}, 9)]


def test_a_proxy_without_room_is_told_as_that() -> None:
    (answer,) = capture(Lending(has_room=False), "placeholder").answers
    assert answer == {"error": "the proxy does not keep up: try again"}

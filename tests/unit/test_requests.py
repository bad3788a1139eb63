"""What a running supervisor takes from netns-debug, and what it does not."""

from __future__ import annotations

from typing import Any

import pytest

from netns_runtime.policy import load_policy
from netns_runtime.requests import Requests, inspected_in

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

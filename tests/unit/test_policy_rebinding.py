"""What a swapped policy does to the secrets of a running sandbox."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from netns_runtime.address import HostPort
from netns_runtime.policy import Policy, decide, load_policy
from netns_runtime.policy.requests import Asked, decide_request
from netns_runtime.policy.rules import Rule
from netns_runtime.policy.secrets import bound_to, rebound_all
from netns_runtime.proxy.flow import Flow
from netns_runtime.proxy.reload import REASON, swap_policy
from netns_runtime.requests import Requests
from netns_runtime.secret import Binding, Secret, Slot
from netns_runtime.supplied import listed
from tests.support.proxy_stage import Stage
from tests.unit.test_requests import Nothing

if TYPE_CHECKING:
    from netns_runtime.proxy.flow import Ended

SLOTS = (Slot("header", "authorization"),)
OF_FILE = Binding("MINE", ("up.test",), SLOTS, text="MINE (old.yaml:3)")
OF_PRESET = Binding("THEIRS", ("up.test",), SLOTS, preset="slack")
AT_ENDPOINT = Binding("READ", ("up.test",), SLOTS, "endpoint", executables=("/bin/sh",))
NEW = """
version: 1
network_policies:
  r:
    endpoints: [{host: up.test, port: 443, protocol: websocket, access: full}]
secrets:
  %s: {hosts: [else.test], slots: [{query: key}]}
"""


def new(name: str = "OTHER") -> Policy:
    return load_policy((NEW % name).encode(), "new.yaml")


def swapped(*bindings: Binding, policy: Policy | None = None) -> Stage:
    readers = (("READ", Rule("r", ())),)
    stage = Stage(secrets=tuple(Secret(each, "value-1234") for each in bindings), readers=readers)
    swap_policy(stage.sandbox, policy or new())
    return stage


def test_a_replaced_file_s_binding_goes_and_a_preset_s_stays() -> None:
    stage = swapped(OF_FILE, OF_PRESET)
    bound = bound_to(stage.sandbox.config.secrets, "up.test")
    assert [secret.name for secret in bound] == ["THEIRS"]


def test_a_second_swap_binds_again_what_the_first_let_go() -> None:
    stage = swapped(OF_FILE)
    swap_policy(stage.sandbox, new("MINE"))
    [secret] = bound_to(stage.sandbox.config.secrets, "else.test")
    assert (secret.name, secret.value) == ("MINE", "value-1234")


@pytest.mark.parametrize("binding", [OF_FILE, OF_PRESET])
def test_what_the_new_policy_binds_is_bound_as_that_says(binding: Binding) -> None:
    stage = swapped(binding, policy=new(binding.name))
    [secret] = stage.sandbox.config.secrets
    assert (secret.binding.hosts, secret.binding.slots) == (("else.test",), (Slot("query", "key"),))


def test_who_could_read_a_secret_whose_binding_is_gone_reads_it_no_more() -> None:
    assert swapped(AT_ENDPOINT).sandbox.config.readers == ()
    kept = replace(new(), secrets=(replace(AT_ENDPOINT, text="elsewhere"),))
    assert len(swapped(AT_ENDPOINT, policy=kept).sandbox.config.readers) == 1


@pytest.mark.parametrize(("binding", "is_cut"), [(OF_FILE, True), (OF_PRESET, False)])
def test_an_open_websocket_ends_where_its_secret_is_bound_no_more(
    binding: Binding, is_cut: bool
) -> None:
    stage = Stage(secrets=(Secret(binding, "value-1234"),), policy=new())
    target, asked = HostPort("up.test", 443), Asked("GET", "/", (), is_websocket=True)
    decision = decide(new(), target, None)
    flow = Flow(1, target, "websocket", 0.0, None, decision, new())
    flow.upgrade = asked, decide_request(new(), target, None, asked).websocket
    cut: list[Ended] = []
    flow.cut = cut.append
    stage.sandbox.flows[1] = flow
    assert swap_policy(stage.sandbox, new()) == is_cut
    assert [ended.reason for ended in cut] == [REASON] * is_cut


def test_the_answer_tells_what_is_no_longer_bound_and_what_has_no_value() -> None:
    told: list[tuple[str, tuple[Binding, ...]]] = []
    nothing: Any = Nothing()
    requests = Requests(
        gateway=nothing,
        registration=None,
        proxy=nothing,
        identify=lambda policy: policy,
        on_policy=lambda name, bindings: told.append((name, bindings)),
        bindings=(OF_FILE, OF_PRESET),
    )
    answers: list[dict[str, Any]] = []
    caller: Any = answers.append
    requests.handle({"command": "policy", "name": "new.yaml", "text": NEW % "OTHER"}, caller)
    requests.on_proxy({"kind": "policy", "closed": 2})
    assert answers == [
        {
            "closed": 2,
            "notes": [
                "MINE is no longer bound",
                "OTHER has no value: it was not given at the start",
            ],
        }
    ]
    [(name, bindings)] = told
    assert name == "new.yaml"
    record = {entry["name"]: entry["hosts"] for entry in listed(bindings)}
    assert record == {"MINE": [], "THEIRS": ["up.test"]}
    json.dumps(listed(bindings))


def test_what_cmd_has_itself_stays_its_own() -> None:
    exposed = Binding("MINE", (), (), "env")
    found, notes = rebound_all((exposed,), new("MINE").secrets)
    assert found == (exposed,)
    assert notes == ("MINE stays in CMD's environment, as it was given at the start",)

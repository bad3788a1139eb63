"""The `secrets:` section: what binds, and the one line about what does not."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netns_runtime.errors import UsageError
from netns_runtime.policy import Policy, identify_binaries, load_policy
from netns_runtime.policy.secrets import bound_to
from netns_runtime.secret import Binding, Secret, Slot

WHOLE = """\
version: 1
secrets:
  DISCORD_BOT_TOKEN: &token
    hosts: [Discord.test, "*.discord.test"]
    slots:
      - header: Authorization
      - basic: password
      - basic: any
      - query: token
      - path: any
      - path: 2
      - form: token
      - json: /auth/0/tok~1en
      - websocket: /d/token
        when: {pointer: /op, in: [2, -6, resume, true, null, 1.5]}
      - header: sec-websocket-protocol
    expose: endpoint
    codings: [gzip, deflate]
    binaries: [{path: /usr/bin/node}]
  OTHER: *token
"""


def load(text: str) -> Policy:
    return load_policy(text.encode(), "p.yaml")


def slot(text: str) -> str:
    return f"secrets:\n  A:\n    hosts: [a.test]\n    slots:\n      - {{{text}}}\n"


def more(text: str) -> str:
    return f"secrets:\n  A: {{hosts: [a.test], slots: [{{header: x}}], {text}}}\n"


def test_reads_a_binding_whole() -> None:
    binding, other = load(WHOLE).secrets
    assert binding == Binding(
        "DISCORD_BOT_TOKEN",
        ("discord.test", "*.discord.test"),
        (
            Slot("header", "authorization"),
            Slot("basic", "password"),
            Slot("basic", ""),
            Slot("query", "token"),
            Slot("path", ""),
            Slot("path", "2"),
            Slot("form", "token"),
            Slot("json", "/auth/0/tok~1en"),
            Slot("websocket", "/d/token", ("/op", (2, -6, "resume", True, None, 1.5))),
            Slot("header", "sec-websocket-protocol"),
        ),
        "endpoint",
        ("gzip", "deflate"),
        ("/usr/bin/node",),
        "DISCORD_BOT_TOKEN (p.yaml:3)",
    )
    assert other.text == "OTHER (p.yaml:20)"
    assert other.slots == binding.slots


def test_a_secret_that_is_exposed_needs_no_host() -> None:
    (binding,) = load("secrets: {A: {expose: env}}").secrets
    assert (binding.hosts, binding.slots, binding.expose) == ((), (), "env")


def test_no_secrets_are_no_secrets() -> None:
    assert load("version: 1\nsecrets:\n").secrets == ()
    assert load("secrets: {}").secrets == ()


def test_secrets_outlive_the_identification_of_binaries() -> None:
    policy = load(WHOLE + "network_policies:\n  r: {binaries: [{path: /usr/bin/env}]}\n")
    assert identify_binaries(policy, (1000, ())).secrets == policy.secrets


def test_a_wildcard_binds_one_label_and_never_the_name_itself() -> None:
    secrets = [Secret(binding, "v") for binding in load(WHOLE).secrets]
    assert len(bound_to(secrets, "gateway.discord.test")) == 2
    assert len(bound_to(secrets, "discord.test")) == 2
    assert bound_to(secrets, "a.b.discord.test") == ()
    assert bound_to(secrets, "discord.test.evil.test") == ()


def test_a_skip_is_not_noted_by_the_file_since_the_launch_says_it() -> None:
    policy = load(
        WHOLE + "network_policies:\n  r:\n    endpoints:\n"
        "      - {host: gateway.discord.test, port: 443, tls: skip}\n"
        "      - {host: other.test, port: 443, tls: skip}\n"
    )
    assert policy.notes == (), "the launch says it, once it knows which secrets there are"


BAD = {
    "an unknown key": (more("host: [b]"), "p.yaml:2: key `host`", "did you mean `hosts`?"),
    "an unknown slot": (slot("heder: x"), "p.yaml:5: key `heder`", "`header`"),
    "a name that is no variable": ("secrets: {A-B: {expose: env}}", "key `A-B`", "letters"),
    "a name with a newline": ('secrets: {"A\\n": {expose: env}}', "no name of a secret", ""),
    "a secret twice": ("secrets:\n  A: {expose: env}\n  A: {expose: env}\n", "p.yaml:3", "line 2"),
    "no hosts": ("secrets: {A: {slots: [{header: x}]}}", "key `hosts`: is missing", "hosts"),
    "empty hosts": ("secrets: {A: {hosts: [], slots: [{header: x}]}}", "`hosts`: is empty", ""),
    "no slots": ("secrets: {A: {hosts: [a.test]}}", "key `slots`: is missing", "- header:"),
    "empty slots": ("secrets: {A: {hosts: [a], slots: []}}", "`slots`: is empty", ""),
    "empty hosts of what is exposed": ("secrets: {A: {expose: env, hosts: []}}", "is empty", ""),
    "a host with a port": (
        "secrets: {A: {hosts: ['a.test:443'], slots: [{header: x}]}}",
        "key `hosts`",
        "without a port",
    ),
    "every host": ("secrets: {A: {hosts: ['*'], slots: [{header: x}]}}", "every host", ""),
    "hosts as text": ("secrets: {A: {hosts: a.test, slots: [{header: x}]}}", "must be a list", ""),
    "a slot as text": ("secrets: {A: {hosts: [a], slots: [header]}}", "must be a mapping", ""),
    "two slots in one": (slot("header: x, query: y"), "names two slots", "header, basic"),
    "a slot of nothing": (slot(""), "p.yaml:5: key `slots`: names no slot", ""),
    "a slot twice": (slot("header: x}\n      - {header: X"), "p.yaml:6", "remove one"),
    "a header with a colon": (slot("header: 'x:'"), "key `header`", "x-api-key"),
    "a header with a space": (slot("header: 'x y'"), "no name of a header", ""),
    "an empty header": (slot("header: ''"), "key `header`: is empty", ""),
    "the Host header": (slot("header: Host"), "`host` carries the message", ""),
    "the length": (slot("header: content-length"), "carries the message", ""),
    "the framing": (slot("header: Transfer-Encoding"), "carries the message", ""),
    "the handshake": (slot("header: sec-websocket-key"), "carries the message", ""),
    "a Basic part": (slot("basic: pass"), "key `basic`", "`password`"),
    "a path's name": (slot("path: first"), "key `path`", "counted from 0"),
    "a negative segment": (slot("path: -1"), "key `path`", "from 0"),
    "a huge segment": (slot("path: 99999999999999"), "key `path`", "255"),
    "a pointer without a slash": (slot("json: token"), "key `json`", "write /token"),
    "a pointer as JSONPath": (slot("json: $.auth.token"), "key `json`", "write /auth/token"),
    "a pointer with a bad escape": (slot("websocket: /d~token"), "key `websocket`", "~0"),
    "a pointer that is a number": (slot("json: 1"), "must be text", "quote"),
    "when on a header": (slot("header: x, when: {pointer: /op, in: [1]}"), "`when`", "remove"),
    "when without values": (slot("websocket: /t, when: {pointer: /op}"), "no `in`", "[2, 6]"),
    "when with no value": (slot("websocket: /t, when: {pointer: /op, in: []}"), "`in`", "list"),
    "when with a list inside": (slot("websocket: /t, when: {pointer: /o, in: [[1]]}"), "`in`", ""),
    "when with a bad pointer": (
        slot("websocket: /t, when: {pointer: op, in: [1]}"),
        "`pointer`",
        "/op",
    ),
    "when with an octal number": (
        slot("websocket: /t, when: {pointer: /op, in: [012]}"),
        "012 is no decimal",
        "quote",
    ),
    "when with a date": (
        slot("websocket: /t, when: {pointer: /op, in: [2020-01-01]}"),
        "`in`: takes",
        "",
    ),
    "an unknown exposure": (more("expose: file"), "key `expose`", "placeholder"),
    "an unknown coding": (more("codings: [br]"), "key `codings`", "gzip"),
    "binaries of a placeholder": (more("binaries: [{path: /x}]"), "no effect", "endpoint"),
    "an endpoint for nobody": (more("expose: endpoint"), "key `binaries`: is missing", "path:"),
    "an endpoint for no one listed": (more("expose: endpoint, binaries: []"), "is empty", ""),
    "a relative binary": (more("expose: endpoint, binaries: [{path: x}]"), "absolute", ""),
    "secrets in a list": ("secrets: [A]", "key `secrets`: must be a mapping", ""),
    "a secret that is text": ("secrets: {A: token}", "key `A`: must be a mapping", ""),
}


@pytest.mark.parametrize(("text", "where", "remedy"), BAD.values(), ids=BAD)
def test_refuses_with_file_line_and_key(text: str, where: str, remedy: str) -> None:
    with pytest.raises(UsageError) as caught:
        load(text)
    message = str(caught.value)
    assert message.startswith("p.yaml:")
    assert "key `" in message
    assert where in message
    assert remedy in message
    assert message.isprintable()


@settings(max_examples=100, deadline=None, database=None)
@given(
    st.dictionaries(
        st.sampled_from(["header", "path", "json", "websocket", "when", "basic", "x"]),
        st.one_of(
            st.text(max_size=6), st.integers(), st.just({"pointer": "/a", "in": [1]}), st.none()
        ),
        max_size=3,
    )
)
def test_a_slot_ends_in_a_binding_or_a_usage_error(fields: dict[str, object]) -> None:
    import json

    with contextlib.suppress(UsageError):
        (binding,) = load(f"secrets: {{A: {{hosts: [a], slots: [{json.dumps(fields)}]}}}}").secrets
        assert len(binding.slots) == 1

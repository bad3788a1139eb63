"""The secrets' endpoint, on loopback: who gets a value, and what everybody else is told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from netns_runtime.config import ProxyConfig
from netns_runtime.owner import Owner
from netns_runtime.policy.rules import Binary, Identity, Policy, Rule
from netns_runtime.secret import Binding, Secret, Slot
from tests.support.proxy_stage import BrokenAudit, Stage, play

if TYPE_CHECKING:
    import trio

TOKEN = "0123456789abcdef"
VALUE = "open-sesame-é"
TEXT = "TOKEN (p.yaml:3)"
READER = Owner(41, "node", 7001, 8, "/usr/bin/node")
STRANGER = Owner(42, "curl", 7002, 8, "/usr/bin/curl")
UNREAD = Owner(43, "node")
BINARY = Binary("/usr/bin/node", 1, (Identity(7001, 8, "/usr/bin/node"),))


def binding(name: str, expose: Any) -> Binding:
    return Binding(name, ("api.test",), (Slot("header", "authorization"),), expose, text=TEXT)


class Owners:
    def __init__(self, owner: Owner | None) -> None:
        self.owner = owner

    def owner_of(self, _ip: str, _port: int, *_destination: Any) -> Owner | None:
        return self.owner


def asked(
    request: str, owner: Owner | None = READER, *, has_probe: bool = True, **config: Any
) -> tuple[bytes, Stage]:
    settings: dict[str, Any] = {
        "secrets": (
            Secret(binding("TOKEN", "endpoint"), VALUE),
            Secret(binding("CLOSED", "placeholder"), "closed-value"),
        ),
        "secrets_token": TOKEN,
        "readers": (("TOKEN", Rule(TEXT, (), (BINARY,))),),
    } | config
    stage = Stage(**settings)
    if has_probe:
        stage.sandbox.owners = Owners(owner)
    answers: list[bytes] = []

    async def scenario(stage: Stage, _nursery: trio.Nursery) -> None:
        answers.append(await stage.ask(request.encode()))

    play(scenario, stage=stage)
    return answers[0], stage


def get(target: str, token: str | None = TOKEN, method: str = "GET", scheme: str = "Bearer") -> str:
    shown = f"Authorization: {scheme} {token}\r\n" if token is not None else ""
    return f"{method} {target} HTTP/1.1\r\nHost: 10.200.0.1:3128\r\n{shown}\r\n"


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


FORMS = ["/secrets/v1/TOKEN", "http://10.200.0.1:3128/secrets/v1/TOKEN"]


@pytest.mark.parametrize("target", FORMS)
@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
def test_a_listed_executable_with_the_token_reads_the_value(target: str, scheme: str) -> None:
    answer, stage = asked(get(target, scheme=scheme))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert status_of(answer) == 200
    assert body.decode() == VALUE
    assert b"Cache-Control: no-store" in head
    [line] = stage.of("secret.substituted")
    assert (line["secret"], line["slot"], line["action"]) == ("TOKEN", "endpoint", "allow")
    assert (line["pid"], line["exe"], line["rule"]) == (41, "/usr/bin/node", TEXT)


@pytest.mark.parametrize("owner", [STRANGER, UNREAD, None])
def test_any_other_process_is_refused(owner: Owner | None) -> None:
    answer, stage = asked(get(FORMS[0]), owner)
    assert status_of(answer) == 403
    assert b"may not be read by this process" in answer
    assert VALUE.encode() not in answer
    [line] = stage.of("secret.withheld")
    assert (line["secret"], line["slot"], line["action"]) == ("TOKEN", "endpoint", "refuse")
    assert line["reason"] == "http_request_denied"


@pytest.mark.parametrize("has_probe", [False, True])
def test_a_refusal_without_the_probe_says_that_executables_are_not_known(has_probe: bool) -> None:
    answer, stage = asked(get(FORMS[0]), None, has_probe=has_probe)
    assert status_of(answer) == 403
    remedy = stage.of("secret.withheld")[0]["remedy"]
    without = "executables are known only with the probe: see netns-debug doctor"
    assert (remedy == without) is not has_probe


@pytest.mark.parametrize("token", [None, "", TOKEN[:-1], TOKEN + "0", "ünsinn"])
def test_without_the_token_of_this_sandbox_nothing_is_read(token: str | None) -> None:
    answer, stage = asked(get(FORMS[0], token))
    assert status_of(answer) == 401
    assert b"WWW-Authenticate: Bearer\r\n" in answer
    assert b"NETNS_SECRETS_TOKEN" in answer
    assert TOKEN.encode() not in answer
    assert stage.of("secret.withheld")[0]["status"] == 401


def test_two_tokens_are_none() -> None:
    request = get(FORMS[0]).replace("\r\n\r\n", f"\r\nAuthorization: Bearer {TOKEN}\r\n\r\n")
    assert status_of(asked(request)[0]) == 401


def test_basic_credentials_are_no_token() -> None:
    assert status_of(asked(get(FORMS[0], scheme="Basic"))[0]) == 401


@pytest.mark.parametrize(
    "target",
    [
        "/secrets/v1/CLOSED",
        "/secrets/v1/NOBODY",
        "/secrets/v1/",
        "/secrets/v1/TOKEN/",
        "/secrets/v1/TOKEN?x=1",
        "/secrets/v1/../v1/TOKEN",
        "/secrets/v1/%54OKEN",
        "/secrets/v2/TOKEN",
    ],
)
def test_what_is_not_exposed_here_is_not_found(target: str) -> None:
    answer, stage = asked(get(target))
    assert status_of(answer) == 404
    assert stage.of("secret.withheld")[0]["status"] == 404
    assert not stage.of("secret.substituted")


@pytest.mark.parametrize("method", ["POST", "HEAD", "PUT"])
def test_a_secret_is_only_got(method: str) -> None:
    answer, stage = asked(get(FORMS[0], method=method))
    assert status_of(answer) == 405
    assert not stage.of("secret.substituted")


def test_without_an_exposed_secret_there_is_no_endpoint() -> None:
    answer, _ = asked(get(FORMS[0], ""), secrets_token="", readers=())
    assert status_of(answer) == 404
    assert b"expose: endpoint" in answer


@pytest.mark.parametrize(
    "target", ["http://10.200.0.1:80/secrets/v1/TOKEN", "http://up.test/secrets/v1/TOKEN"]
)
def test_another_authority_is_not_the_endpoint(target: str) -> None:
    host = f"Host: {target.split('/')[2]}\r\nConnection: close\r\n"
    answer, stage = asked(get(target).replace("Host: 10.200.0.1:3128\r\n", host))
    assert status_of(answer) in (403, 502)
    assert VALUE.encode() not in answer
    assert not stage.of("secret.substituted")


def test_report_mode_lifts_nothing() -> None:
    assert status_of(asked(get(FORMS[0]), STRANGER, report=True)[0]) == 403


def test_no_record_no_value() -> None:
    stage = Stage(
        secrets=(Secret(binding("TOKEN", "endpoint"), VALUE),),
        secrets_token=TOKEN,
        readers=(("TOKEN", Rule(TEXT, (), (BINARY,))),),
    )
    stage.sandbox.owners = Owners(READER)
    stage.sandbox.audit = BrokenAudit(None, "s")
    answers: list[bytes] = []

    async def scenario(stage: Stage, _nursery: trio.Nursery) -> None:
        answers.append(await stage.ask(get(FORMS[0]).encode()))

    play(scenario, stage=stage)
    assert status_of(answers[0]) == 503
    assert VALUE.encode() not in answers[0]


def test_a_configuration_shows_neither_token_nor_value() -> None:
    config = ProxyConfig(
        "s", Policy(), 1, secrets=(Secret(binding("T", "endpoint"), VALUE),), secrets_token=TOKEN
    )
    assert VALUE not in repr(config)
    assert TOKEN not in repr(config)

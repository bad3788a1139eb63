"""Unmodified clients that ignore the proxy: carried by name, or refused at once and told why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

from tests.support import world
from tests.support.direct import CASES, Case, Outcome, build_programs, make_repository, run_batch
from tests.support.lab_ssh import ssh_server

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.lab import Lab

AT_ONCE: Final = 1.0
"""Seconds from the refusal to the client's own end, on a machine that runs two at a time."""
PORTS: Final = {
    **{"http": 80, "ws": 80, "https": 443, "wss": 443},
    **{"ssh": 22, "smtp": 25, "postgres": 5432, "redis": 6379},
}
FAMILIES: Final = {"four": ("4", world.WEB_IPV4), "six": ("6", world.WEB_IPV6)}

every_case = pytest.mark.parametrize("case", CASES, ids=str)


@pytest.fixture(scope="module", autouse=True)
def everything_is_there(lab_of_all: Lab) -> Iterator[None]:
    build_programs()
    make_repository(lab_of_all)
    with ssh_server(lab_of_all):
        yield


@pytest.fixture(scope="module")
def allowed(lab_of_all: Lab) -> dict[str, dict[Case, Outcome]]:
    return {
        suffix: run_batch(lab_of_all, f"{suffix}.test", family, "--allow", f"*.{suffix}.test:*")[0]
        for suffix, (family, _) in FAMILIES.items()
    }


@pytest.fixture(scope="module")
def unlisted(lab_of_all: Lab) -> dict[Case, Outcome]:
    lab_of_all.forget()
    outcomes, _ = run_batch(lab_of_all, "unlisted.test", "4", "--allow", "web.lab.test:*")
    assert lab_of_all.queries_seen() == []
    assert lab_of_all.connections_seen() == []
    return outcomes


@pytest.fixture(scope="module")
def other_port(lab_of_all: Lab) -> dict[Case, Outcome]:
    lab_of_all.forget()
    outcomes, _ = run_batch(lab_of_all, "four.test", "4", "--allow", "*.four.test:9999")
    assert lab_of_all.queries_seen() == []
    assert lab_of_all.connections_seen() == []
    return outcomes


@every_case
@pytest.mark.parametrize("suffix", FAMILIES)
def test_is_carried_to_an_allowed_name(
    allowed: dict[str, dict[Case, Outcome]], suffix: str, case: Case
) -> None:
    outcome = allowed[suffix][case]
    assert outcome.status == 0, outcome.told()
    assert case.client.said.replace("{host}", outcome.host) in outcome.said, outcome.told()


@every_case
@pytest.mark.parametrize("suffix", FAMILIES)
def test_is_written_down_with_its_name_and_process(
    allowed: dict[str, dict[Case, Outcome]], suffix: str, case: Case
) -> None:
    outcome = allowed[suffix][case]
    [answered] = outcome.of("dns.answered")
    assert f"*.{suffix}.test" in answered["rule"], outcome.told()
    decided = outcome.of("flow.decided")
    assert decided, outcome.told()
    for event in decided:
        assert (event["entry"], event["action"]) == ("redirected", "allow"), outcome.told()
        assert event["address"] == FAMILIES[suffix][1], outcome.told()
        assert event["port"] == PORTS[case.scheme], outcome.told()
        assert case.client.exe in event["exe"], outcome.told()
        assert event["pid"] > 1, outcome.told()
        assert event["comm"], outcome.told()
    closed = outcome.of("flow.closed")
    flows = {event["flow"] for event in decided}
    assert sorted(event["flow"] for event in closed) == sorted(flows), outcome.told()
    assert sum(event["bytes_in"] for event in closed) > 0, outcome.told()
    assert sum(event["bytes_out"] for event in closed) > 0, outcome.told()
    assert outcome.of("connect.refused") == []


@every_case
def test_is_refused_a_name_that_is_not_listed(unlisted: dict[Case, Outcome], case: Case) -> None:
    outcome = unlisted[case]
    assert outcome.status not in (0, 127, None), outcome.told()
    assert case.client.unknown in outcome.said, outcome.told()
    assert outcome.of("flow.decided") == [], outcome.told()


@every_case
def test_is_refused_such_a_name_at_once_and_the_line_names_its_process(
    unlisted: dict[Case, Outcome], case: Case
) -> None:
    outcome = unlisted[case]
    refused = outcome.of("dns.refused")
    assert refused, outcome.told()
    assert outcome.seconds_since(refused[0]) < AT_ONCE, outcome.told()
    assert refused[0]["remedy"] == f"--allow {outcome.host}", outcome.told()
    assert refused[0]["said_by"] == "policy", outcome.told()
    assert case.client.exe in refused[0]["exe"], outcome.told()
    assert refused[0]["pid"] > 1, outcome.told()


@every_case
def test_is_refused_a_port_that_is_not_listed(other_port: dict[Case, Outcome], case: Case) -> None:
    outcome = other_port[case]
    assert outcome.status not in (0, 127, None), outcome.told()
    assert case.client.said.replace("{host}", outcome.host) not in outcome.said, outcome.told()
    refused = outcome.of("flow.decided")
    assert refused, outcome.told()
    for event in refused:
        assert (event["entry"], event["action"]) == ("redirected", "refuse"), outcome.told()
        assert event["port"] == PORTS[case.scheme], outcome.told()
        assert event["said_by"] == "policy", outcome.told()
        assert f"--allow {outcome.host}:{PORTS[case.scheme]}" in event["remedy"], outcome.told()
        assert case.client.exe in event["exe"], outcome.told()
    assert outcome.seconds_since(refused[0]) < AT_ONCE, outcome.told()

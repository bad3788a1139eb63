"""Clients of other languages that use the proxy which the variables name: the same, by proxy."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.support.direct import TOLD_CASES, Case, Outcome, below, build_programs, run_batch

if TYPE_CHECKING:
    from tests.support.lab import Lab

PORTS = {"http": 80, "https": 443}

every_case = pytest.mark.parametrize("case", TOLD_CASES, ids=str)


@pytest.fixture(scope="module")
def allowed(lab_of_all: Lab) -> dict[Case, Outcome]:
    build_programs()
    hosts = below("four.test", TOLD_CASES)
    return run_batch(lab_of_all, hosts, "4", "--allow", "*.four.test")[0]


@pytest.fixture(scope="module")
def unlisted(lab_of_all: Lab) -> dict[Case, Outcome]:
    build_programs()
    lab_of_all.forget()
    hosts = below("unlisted.test", TOLD_CASES)
    outcomes, _ = run_batch(lab_of_all, hosts, "4", "--allow", "*.four.test")
    assert lab_of_all.connections_seen() == []
    return outcomes


@every_case
def test_reaches_an_allowed_host_by_proxy(allowed: dict[Case, Outcome], case: Case) -> None:
    outcome = allowed[case]
    assert outcome.status == 0, outcome.told()
    assert f"hello from {outcome.host}" in outcome.said, outcome.told()
    decided = outcome.of("flow.decided")
    assert decided, outcome.told()
    for event in decided:
        assert (event["entry"], event["action"]) == ("explicit", "allow"), outcome.told()
        assert event["port"] == PORTS[case.scheme], outcome.told()
        assert case.client.exe in event["exe"], outcome.told()
    assert outcome.of("connect.refused") == []


@every_case
def test_is_told_of_the_refusal_of_a_host_that_is_not_listed(
    unlisted: dict[Case, Outcome], case: Case
) -> None:
    outcome = unlisted[case]
    assert outcome.status not in (0, 127, None), outcome.told()
    assert re.search(case.client.denied, outcome.said), outcome.told()
    decided = outcome.of("flow.decided")
    assert decided, outcome.told()
    for event in decided:
        assert (event["entry"], event["action"]) == ("explicit", "refuse"), outcome.told()
        assert event["remedy"] == f"--allow {outcome.host}:{PORTS[case.scheme]}", outcome.told()

"""Fixtures of all tests: the lab, the check that nothing is left behind, and NETNS_MUST_WORK.

Tests under kernel/, e2e/ and adversarial/ need root and are skipped without it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support import leftovers
from tests.support.lab import Lab

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

MUST_WORK = os.environ.get("NETNS_MUST_WORK") == "1"
REAL = {"kernel", "e2e", "adversarial"}


def _is_real(path: Path) -> bool:
    return bool(REAL & set(path.relative_to(Path(__file__).parent).parts))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _is_real(item.path) and os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason="needs root"))


def _fail_instead(report: pytest.TestReport | pytest.CollectReport) -> None:
    if MUST_WORK and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, and NETNS_MUST_WORK=1 forbids that: {report.longrepr}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _fail_instead(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _fail_instead(report)
    return report


@pytest.fixture(scope="session")
def lab_of_all() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


@pytest.fixture
def lab(lab_of_all: Lab) -> Lab:
    """The shared lab with nothing seen yet. A test that renames hosts takes `fresh_lab`."""
    lab_of_all.forget()
    return lab_of_all


@pytest.fixture
def fresh_lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


@pytest.fixture(autouse=True)
def nothing_is_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """A kernel, end-to-end or adversarial test fails if the machine is not as it was."""
    if not _is_real(request.node.path):
        yield
        return
    if "lab" in request.fixturenames:
        request.getfixturevalue("lab_of_all")
    before = leftovers.snapshot()
    yield
    killed = request.node.get_closest_marker("killed") is not None
    found = leftovers.wait_for_nothing(before, killed=killed)
    assert not found, "left behind:\n" + "\n".join(found)

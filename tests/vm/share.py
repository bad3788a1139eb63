"""A pytest plugin: of the tests that were collected, every Nth, so that N guests share a row.

Neighbours often take as long as each other, so taking turns shares the time better than halves do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Sequence


_FOUND = pytest.StashKey[int]()


def parse_share(text: str) -> tuple[int, int]:
    """(K, N) of `K/N`, the Kth of N. Raises ValueError."""
    first, _, second = text.partition("/")
    number, of = int(first), int(second)
    if not 1 <= number <= of:
        raise ValueError(text)
    return number, of


def share_of(items: Sequence[pytest.Item], number: int, of: int) -> list[pytest.Item]:
    """Every item is in exactly one of the `of` shares."""
    return list(items[number - 1 :: of])


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--share", metavar="K/N", type=parse_share, help="run the Kth of N shares")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    share = config.getoption("--share")
    if share is None:
        return
    config.stash[_FOUND] = len(items)
    mine = share_of(items, *share)
    chosen = set(map(id, mine))
    config.hook.pytest_deselected(items=[item for item in items if id(item) not in chosen])
    items[:] = mine


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """More guests than tests is no failure: somebody else has run them."""
    found = session.config.stash.get(_FOUND, 0)
    if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and found:
        session.exitstatus = pytest.ExitCode.OK

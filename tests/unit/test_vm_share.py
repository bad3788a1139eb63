"""Guests that share a row: every test runs in one of them, and the row is as bad as its worst."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.vm import guest, report, share, suite, tools
from tests.vm.__main__ import parse
from tests.vm.image import Boot

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Sequence


@pytest.mark.parametrize("of", [1, 2, 3, 7])
@pytest.mark.parametrize("tests", [0, 1, 2, 5, 13])
def test_every_test_is_in_exactly_one_share(of: int, tests: int) -> None:
    items: list[Any] = list(range(tests))
    shares = [share.share_of(items, number, of) for number in range(1, of + 1)]
    together: list[Any] = [item for mine in shares for item in mine]
    assert sorted(together) == items
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "1/", "a/b", "-1/2", "1/2/3"])
def test_a_share_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        share.parse_share(text)


class Item:
    """Like one that pytest collected: equal to others, and still another."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Item)

    __hash__ = None  # type: ignore[assignment]


class Config:
    """As much of pytest's as the plugin uses."""

    def __init__(self, share: tuple[int, int] | None) -> None:
        self.share, self.stash, self.hook = share, pytest.Stash(), self
        self.deselected: list[Item] = []

    def getoption(self, _: str) -> tuple[int, int] | None:
        return self.share

    def pytest_deselected(self, items: Sequence[Item]) -> None:
        self.deselected += items


class Session:
    def __init__(self, config: Config) -> None:
        self.config, self.exitstatus = config, pytest.ExitCode.NO_TESTS_COLLECTED


def collected(chosen: tuple[int, int] | None, tests: int) -> tuple[Any, list[Any]]:
    config: Any = Config(chosen)
    items: list[Any] = [Item() for _ in range(tests)]
    share.pytest_collection_modifyitems(config, items)
    return config, items


def test_what_others_run_is_told_as_deselected() -> None:
    config, items = collected((2, 2), 5)
    assert (len(items), len(config.deselected)) == (2, 3)
    assert not {id(item) for item in items} & {id(item) for item in config.deselected}
    assert len(collected(None, 5)[1]) == 5


@pytest.mark.parametrize(
    ("chosen", "tests", "status"),
    [
        # More guests than tests: somebody else has run the one there is.
        ((2, 2), 1, pytest.ExitCode.OK),
        # Nothing was found at all: the names were wrong.
        ((2, 2), 0, pytest.ExitCode.NO_TESTS_COLLECTED),
        (None, 0, pytest.ExitCode.NO_TESTS_COLLECTED),
    ],
)
def test_an_empty_share_is_no_failure_and_an_empty_suite_is(
    chosen: tuple[int, int] | None, tests: int, status: pytest.ExitCode
) -> None:
    config, _ = collected(chosen, tests)
    session: Any = Session(config)
    share.pytest_sessionfinish(session, pytest.ExitCode.NO_TESTS_COLLECTED)
    assert session.exitstatus == status


def test_a_share_is_asked_for_only_where_guests_share() -> None:
    row = suite.Row("6.12")
    assert "--share" not in suite.command_of(row, ["tests/kernel"], kvm=False)
    assert "-p tests.vm.share --share 2/3" in suite.command_of(
        row, ["tests/kernel"], kvm=False, share="2/3"
    )


def test_a_few_claims_are_not_worth_another_boot() -> None:
    assert suite.guests_for(suite.ALL, 2) == 2
    assert suite.guests_for(suite.ALL, 1) == 1
    assert suite.guests_for(suite.ALL, 64) == 4
    assert suite.guests_for(["tests/vm/rows/no_bpf.py"], 8) == 1


@pytest.mark.parametrize("value", ["0", "-1", "two"])
def test_a_number_of_guests_or_cores_is_one_or_more(value: str) -> None:
    for option in ("--guests", "--cores"):
        with pytest.raises(Exception, match=option):
            parse([f"{option}={value}"])


def outcome(kind: guest.Kind, status: int | None, seconds: float) -> guest.Outcome:
    return guest.Outcome(kind, status, seconds)


@pytest.mark.parametrize(
    ("kinds", "worst"),
    [
        ([("ended", 0), ("ended", 0)], ("ended", 0)),
        ([("ended", 0), ("ended", 1)], ("ended", 1)),
        ([("ended", 1), ("timed out", None)], ("timed out", None)),
        ([("timed out", None), ("panicked", None), ("ended", 1)], ("panicked", None)),
    ],
)
def test_a_row_is_as_bad_as_its_worst_guest_and_as_long_as_its_longest(
    kinds: list[tuple[guest.Kind, int | None]], worst: tuple[str, int | None]
) -> None:
    found = report.worst([outcome(*kind, seconds=10 - n) for n, kind in enumerate(kinds)])
    assert (found.kind, found.status, found.seconds) == (*worst, 10)


QEMU = """\
#!/bin/sh
for word; do case $word in file:*output.log) output=${word#file:} ;; esac; done
echo 'guest: started 6.1' >$output
case $output in
  *guest-1*)
    echo 'Kernel panic - not syncing: on purpose' >${output%output.log}console.log
    exec sleep 60
    ;;
esac
until [ -e ${output%output.log}go ]; do sleep 0.01; done
printf '1 passed\\nguest: status 0\\n' >>$output
"""


def test_a_guest_that_panics_is_ended_at_once_and_its_neighbour_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / tools.QEMU).write_text(QEMU)
    (programs / tools.QEMU).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.setattr(guest, "_POLL", 0.005)
    places = [tmp_path / name for name in ("guest-1", "guest-2")]
    for place in places:
        place.mkdir()
    ended = []

    def end(process: subprocess.Popen[bytes]) -> None:
        if process.poll() is None:
            ended.append(process.pid)
            # Only once its neighbour's end has been seen to begin may the second one end.
            (places[1] / "go").touch()
        original(process)

    original = guest._end
    monkeypatch.setattr(guest, "_end", end)
    machine = guest.Machine(Boot(*[Path("/none")] * 3), Path("/none"))
    told: list[str] = []
    found = guest.run_guests([(machine, place) for place in places], told.append)
    assert [(one.kind, one.status) for one in found] == [("panicked", None), ("ended", 0)]
    assert found[0].why == "Kernel panic - not syncing: on purpose"
    assert "1 passed\n" in "".join(told)
    assert len(ended) == 1

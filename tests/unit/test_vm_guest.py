"""What a guest's logs mean, what goes into it, and what the reports say of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from netns_runtime.errors import StepError
from tests.vm import box, provision, report, suite, tools, userland
from tests.vm.__main__ import fill, parse, rows_of
from tests.vm.archive import mirror_of, source_lines
from tests.vm.cache import built, complaint, key_of, place_of, remove_older, require_space
from tests.vm.guest import Machine, Outcome, judge, words_of
from tests.vm.image import Boot
from tests.vm.job import settings_text

STARTED = "guest: started 6.12.1\n"


@pytest.mark.parametrize(
    ("console", "output", "seconds", "lives", "kind"),
    [
        ("", "", 5, True, None),
        ("", "", 500, True, "not started"),
        ("", STARTED, 500, True, None),
        ("", STARTED, 2000, True, "timed out"),
        ("", STARTED, 20, False, "vanished"),
        ("", STARTED + "guest: status 0\n", 20, True, None),
        ("", STARTED + "guest: status 0\n", 20, False, "ended"),
        ("Kernel panic - not syncing: Attempted to kill init!", STARTED, 20, True, "panicked"),
        ("Kernel panic - not syncing: x", "", 20, False, "panicked"),
        ("", "guest: cannot start: the root disk\n", 4, True, "not started"),
        # A test may print such words; only the marker's own line counts.
        ("", STARTED + "said: guest: status 0 in passing\n", 20, False, "vanished"),
    ],
)
def test_logs_mean_one_outcome(
    console: str, output: str, seconds: float, lives: bool, kind: str | None
) -> None:
    found = judge(console, output, seconds=seconds, limit=1800, lives=lives)
    assert (found and found.kind) == kind
    if found and kind != "ended":
        assert found.why


def test_the_status_is_the_jobs() -> None:
    found = judge("", STARTED + "guest: status 7\r\n", seconds=9, limit=10, lives=False)
    assert found is not None
    assert found.status == 7


def machine(**options: Any) -> Machine:
    boot = Boot(Path("/c/vmlinuz"), Path("/c/initramfs"), Path("/c/modules.img"))
    return Machine(boot, Path("/c/root.img"), **options)


def test_a_guest_cannot_change_what_is_kept_and_has_no_network() -> None:
    words = words_of(machine(), Path("/run"))
    drives = [word for word in words if word.startswith("file=")]
    assert all("snapshot=on" in drive for drive in drives if drive.startswith("file=/c/"))
    assert "-nodefaults" in words
    assert not {"-nic", "-net", "-netdev"} & set(words)


@pytest.mark.parametrize(("kvm", "accel"), [(True, "kvm"), (False, "tcg,thread=multi")])
def test_kvm_is_used_only_when_told(kvm: bool, accel: str) -> None:
    words = words_of(machine(kvm=kvm), Path("/run"))
    assert words[words.index("-accel") + 1] == accel


@pytest.mark.parametrize("flags", ["fpu vme", "fpu vmxnet", "svm_lock"])
def test_a_device_without_the_processor_s_flag_is_no_kvm(flags: str) -> None:
    assert not tools.has_kvm(f"flags\t\t: {flags}\n")


def done(
    kind: str = "ended", status: int | None = 0, release: str = "6.12.1-amd64", **counts: int
) -> report.Done:
    outcome = Outcome(kind, status, 61.0, "why", "last line")  # type: ignore[arg-type]
    return report.Done(suite.Row("6.12"), release, "trixie", outcome, {}, counts)


@pytest.mark.parametrize(
    ("row", "status"),
    [
        (done(tests=3), report.PASSED),
        (done(status=1, tests=3, failures=1), report.FAILED),
        (done(tests=0), report.FAILED),
        (done(tests=3, skipped=3), report.FAILED),
        (done(status=5, tests=3), report.FAILED),
        (done("panicked", None), report.CRASHED),
        (done("vanished", None, tests=3), report.CRASHED),
        (done("timed out", None, tests=3), report.TIMED_OUT),
    ],
)
def test_a_row_passes_only_if_tests_ran_and_all_passed(row: report.Done, status: int) -> None:
    assert row.status == status


def test_the_worst_row_is_told() -> None:
    assert report.status_of([done(tests=1), done("timed out", None)]) == report.TIMED_OUT
    assert report.status_of([done("timed out", None), done("panicked", None)]) == report.CRASHED
    assert report.status_of([done(tests=1)]) == 0


def test_a_crash_is_an_error_in_the_xml_though_tests_had_passed() -> None:
    suites = [ElementTree.Element("testsuite", name="pytest", tests="3")]
    text = report.junit([(done("panicked", None, tests=3), suites)])
    root = ElementTree.fromstring(text)
    assert [suite.get("errors") for suite in root] == [None, "1"]
    error = root.find(".//error")
    assert error is not None
    assert (error.get("message"), error.text) == ("why", "last line")


def test_the_table_has_a_line_for_each_row_and_fits_between_its_markers() -> None:
    rows = [done(tests=3), done("panicked", None, release="6.18.1-amd64")]
    table = report.table(rows)
    assert table.count("\n") == 4
    assert len({len(line) for line in table.splitlines()}) == 1
    page = "before\n<!-- matrix -->\nold\n<!-- /matrix -->\nafter\n"
    assert fill(page, rows) == f"before\n<!-- matrix -->\n{table}<!-- /matrix -->\nafter\n"
    assert fill(fill(page, rows), rows) == fill(page, rows)
    with pytest.raises(StepError, match="markers"):
        fill("no table here", rows)


def test_a_row_that_ran_again_takes_its_own_place_and_the_others_stay() -> None:
    releases = ("6.1.0-50-amd64", "6.12.1+deb13-amd64", "6.12.1+deb13-cloud-amd64")
    before = report.table([done(tests=3, release=release) for release in releases])
    again = report.table([done(tests=4, release="6.12.2+deb13-amd64")], before)
    assert [line.split()[1] for line in again.splitlines()[2:]] == [
        releases[0],
        "6.12.2+deb13-amd64",
        releases[2],
    ]
    assert report.table([], before) == before


def test_without_names_every_default_kernel_is_a_row_and_a_fallback_needs_one() -> None:
    assert [row.name for row in rows_of(parse([]))][:2] == ["6.1", "6.1-cloud"]
    assert [row.name for row in rows_of(parse(["--fallback", "no-bpf"]))] == ["6.12 no-bpf"]
    rows = rows_of(parse(["--fallback", "all", "7"]))
    assert [row.name for row in rows] == [f"7 {name}" for name in suite.LACKS]
    with pytest.raises(StepError, match=r"unknown: one of: .*no-ipv6"):
        rows_of(parse(["--fallback", "no-such"]))


def test_every_test_that_a_row_names_is_there() -> None:
    checkout = Path(__file__).resolve().parents[2]
    rows = [suite.Row("6.12"), *(suite.Row("6.12", lack) for lack in suite.LACKS.values())]
    for row in rows:
        chosen = suite.selection_of(row)
        assert chosen, row
        for test in chosen:
            path, _, claim = test.partition("::")
            assert (checkout / path).exists(), test
            assert not claim or f"def {claim}(" in (checkout / path).read_text(), test


def test_claims_about_time_are_left_out_only_where_time_is_emulated() -> None:
    row = suite.Row("6.12")
    slow = next(iter(suite.SLOW))
    assert f"not {slow}" in suite.command_of(row, ["tests/kernel"], kvm=False)
    assert slow not in suite.command_of(row, ["tests/kernel"], kvm=True)


def test_settings_cannot_become_commands() -> None:
    assert "CGROUPS='$(touch /x)'\n" in settings_text({"CGROUPS": "$(touch /x)"})


TARGETS = """\
Ubuntu|noble|http://one.test/ubuntu/
Debian|bookworm-security|http://two.test/security/
Debian|bookworm-updates|http://three.test/debian/
"""


def test_the_mirror_is_the_user_s_own_for_debian_s_main_archive() -> None:
    assert mirror_of(TARGETS) == "http://three.test/debian/"
    assert mirror_of(TARGETS.replace("bookworm-updates", "bookworm-security")) is None
    assert source_lines("http://m.test/", ["trixie"]).endswith("http://m.test/ trixie main\n")


def test_the_cache_is_where_xdg_says_if_that_is_a_place() -> None:
    assert place_of({"XDG_CACHE_HOME": "/x"}) == Path("/x/netns-runtime-vm")
    assert place_of({"XDG_CACHE_HOME": "x"}) == place_of({}) == Path("/var/cache/netns-runtime-vm")


def test_a_build_that_fails_leaves_nothing_and_the_next_starts_anew(tmp_path: Path) -> None:
    def fails(made: Path) -> None:
        made.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        built(tmp_path / "image", fails)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "image.partial").write_text("of a process that was killed")
    assert built(tmp_path / "image", lambda made: made.mkdir()).is_dir()
    assert built(tmp_path / "image", fails).is_dir()


def test_what_other_inputs_made_goes_and_other_userlands_stay(tmp_path: Path) -> None:
    for name in ("trixie-1.img", "trixie-2.img", "trixie+apparmor-1.img", "trixie-3.img.partial"):
        (tmp_path / name).touch()
    remove_older(tmp_path, "trixie-*.img*", tmp_path / "trixie-2.img")
    assert {path.name for path in tmp_path.iterdir()} == {
        *("trixie-2.img", "trixie+apparmor-1.img", "trixie-3.img.partial")
    }


def test_too_little_space_is_one_line_with_what_is_needed(tmp_path: Path) -> None:
    with pytest.raises(StepError, match=r"needs 99999999999 MiB .* free: free some"):
        require_space(tmp_path, 99_999_999_999, "a test")


def test_keys_differ_where_parts_do() -> None:
    assert key_of("ab", "c") != key_of("a", "bc")
    assert key_of("a", b"b") == key_of(b"a", "b")


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("W: x\nE: no such package\nmore", "E: no such package"),
        ("one\ntwo\n", "two"),
        ("", "it said nothing"),
    ],
)
def test_of_what_a_program_says_one_line_is_told(said: str, told: str) -> None:
    assert complaint(said) == told


def test_wheels_are_asked_for_the_guest_s_python() -> None:
    words = provision.wheel_options("3.13")
    assert words[words.index("--python-version") + 1] == "3.13"
    assert "cp313" in words
    assert provision.python_of(["python3", "python3.13", "python3.13-config", "perl"]) == "3.13"


def test_a_guest_s_environment_has_the_project_s_needs_and_no_linters() -> None:
    found = userland.requirements(Path(__file__).resolve().parents[2])
    names = {line.split(">")[0].split("=")[0] for line in found}
    assert {"trio", "pytest", "h2"} <= names
    assert not names & {"ruff", "mypy", "clang-format"}


def test_a_box_boots_from_one_active_partition_behind_grub() -> None:
    record = box.boot_record(bytes(range(256)) * 2, 4096)
    assert len(record) == 512
    assert record[510:] == b"\x55\xaa"
    assert (record[446], record[450]) == (0x80, 0x83)
    assert int.from_bytes(record[454:458], "little") == 2048
    assert int.from_bytes(record[458:462], "little") == 4096
    assert json.loads(box.metadata(12)) == {
        "provider": "libvirt",
        "format": "qcow2",
        "virtual_size": 12,
    }
    with pytest.raises(StepError, match="one sector"):
        box.boot_record(b"", 1)

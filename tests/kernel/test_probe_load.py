"""Compiling and pinning: once, by nobody but the first launch, and with errors that can be read."""

from __future__ import annotations

import errno
import os
import re
import secrets
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from netns_runtime.probes import hooks, load, pins
from netns_runtime.probes.features import features
from netns_runtime.probes.pins import ensure_probe, open_bpffs, remove_pins, remove_stale_sets
from netns_runtime.probes.unavailable import ProbeUnavailable
from tests.support.probe import REFUSED_IPV4, cell, guarded_cell, own_parent, own_probe, skip

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def _needs_root() -> None:
    if os.geteuid() != 0:
        skip("needs root")


@pytest.fixture
def name() -> Iterator[str]:
    """A set's name; whatever was pinned under it is gone afterwards."""
    chosen = f"netns-runtime-test-{secrets.token_hex(4)}"
    yield chosen
    for entry in open_bpffs().glob(f"{chosen}*"):
        remove_pins(entry)


def refused() -> int:
    with socket.socket() as sock:
        return sock.connect_ex((REFUSED_IPV4, 443))


def with_source(monkeypatch: pytest.MonkeyPatch, old: str, new: str) -> None:
    text = hooks.source_text()
    assert old in text
    monkeypatch.setattr(hooks, "source_text", lambda: text.replace(old, new))


def test_the_verifier_is_told_in_two_lines_and_whole_on_request(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_source(
        monkeypatch,
        "struct dialling note = *found;",
        "struct dialling note = *(found + 1);",
    )
    with pytest.raises(ProbeUnavailable) as raised:
        ensure_probe(name=name)
    what, where = str(raised.value).splitlines()
    assert re.match(r"the kernel refused program own_flow: .*(outside|invalid access)", what)
    assert re.match(r"  at \d+: \(79\) r\d = \*\(u64 \*\)", where)
    assert raised.value.details.count("\n") > 10
    assert not list(open_bpffs().glob(f"{name}*"))


def test_a_compiler_error_names_file_and_line(
    name: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with_source(monkeypatch, "struct dialling note = *found;", "struct nobody note = *found;")
    with pytest.raises(ProbeUnavailable, match=r"bpf/owner\.c:\d+:\d+: error"):
        ensure_probe(name=name)
    assert capfd.readouterr().err == ""
    assert not list(open_bpffs().glob(f"{name}*"))


def test_without_btf_everything_works_but_executables(name: str) -> None:
    lacks = frozenset({"btf"})
    with (
        own_parent() as parent,
        ensure_probe(name=name, lacks=lacks) as probe,
        guarded_cell(probe, parent) as (made, registration),
    ):
        assert made.run(refused) == errno.ECONNREFUSED
        (event,) = registration.read_events()
        assert event.pid > 0
        assert (event.exe_inode, event.exe_device, event.ppid) == (0, 0, 0)


@pytest.mark.parametrize("feature", ["connect6", "bcc", "set_retval", "bpffs"])
def test_a_missing_feature_is_named_before_anything_is_done(feature: str, name: str) -> None:
    with pytest.raises(ProbeUnavailable, match=feature):
        ensure_probe(name=name, lacks=frozenset({feature}))
    assert not (open_bpffs() / name).exists()


def test_doctor_finds_every_needed_feature_where_the_probe_loads() -> None:
    with own_probe():
        assert [f.name for f in features() if f.needed and not f.present] == []
    assert [f.name for f in features(frozenset({"ringbuf"})) if not f.present] == ["ringbuf"]


def test_a_later_launch_imports_no_compiler_and_is_quick(name: str) -> None:
    with ensure_probe(name=name), own_parent() as parent, cell(parent) as made:
        script = (
            "import sys, time; from pathlib import Path;"
            "from netns_runtime.probes.pins import ensure_probe; start = time.perf_counter();"
            "probe = ensure_probe(name=sys.argv[1]);"
            "entry = probe.register(int(sys.argv[2]), Path(sys.argv[3]));"
            "print(time.perf_counter() - start); entry.close();"
            "assert not {'bcc', 'netns_runtime.probes.load'} & sys.modules.keys()"
        )
        words = [sys.executable, "-c", script, name, str(made.cookie), str(made.cgroup)]
        seconds = min(
            float(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
            for _ in range(5)
        )
        assert seconds < 0.005


def test_a_set_of_somebody_else_is_not_taken(name: str) -> None:
    with ensure_probe(name=name) as probe:
        directory = probe.directory
    os.chown(directory, 65534, 65534)
    with pytest.raises(ProbeUnavailable, match="not root's own"):
        ensure_probe(name=name)
    os.chown(directory, 0, 0)


def test_a_launch_that_died_while_pinning_is_cleaned_up_by_the_next(name: str) -> None:
    (open_bpffs() / f"{name}-new").mkdir()
    with ensure_probe(name=name) as probe:
        assert probe.cookies() == []
    assert not (open_bpffs() / f"{name}-new").exists()


def test_gc_keeps_the_set_in_use_and_removes_the_idle_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bpffs = open_bpffs()
    idle, busy = f"netns-runtime-{secrets.token_hex(8)}", f"netns-runtime-{secrets.token_hex(8)}"
    mine = {bpffs / idle, bpffs / busy}
    monkeypatch.setattr(pins, "_SET", re.compile(f"{idle}|{busy}"))
    try:
        with (
            own_parent() as parent,
            ensure_probe(name=idle),
            ensure_probe(name=busy) as probe,
            guarded_cell(probe, parent),
        ):
            assert remove_stale_sets() == (idle,)
            assert [path.exists() for path in (bpffs / idle, bpffs / busy)] == [False, True]
    finally:
        for path in mine:
            load.remove_directory(path)


def test_programs_outlive_the_process_that_attached_them(name: str, tmp_path: Path) -> None:
    with own_parent() as parent, cell(parent) as made:
        script = (
            "import sys; from pathlib import Path;"
            "from netns_runtime.probes.pins import ensure_probe;"
            "ensure_probe(name=sys.argv[1]).register(int(sys.argv[2]), Path(sys.argv[3]))"
        )
        words = [sys.executable, "-c", script, name, str(made.cookie), str(made.cgroup)]
        subprocess.run(words, check=True)
        remove_pins(open_bpffs() / name)
        time.sleep(0.05)
        assert made.run(refused) == errno.ECONNREFUSED

"""Header trees, mounts, CPU lists, verifier logs: what is decided before the kernel is asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from netns_runtime.probes import hooks
from netns_runtime.probes.headers import merged_tree, pair_of
from netns_runtime.probes.load import compiler_line, verifier_lines
from netns_runtime.probes.pins import bpffs_of, set_name
from netns_runtime.probes.probe import possible_cpus
from netns_runtime.probes.unavailable import ProbeUnavailable


@pytest.mark.parametrize(
    ("names", "pair"),
    [
        (
            ["linux-headers-6.1.0-9-amd64", "linux-headers-6.1.0-9-common", "linux-kbuild-6.1"],
            ("linux-headers-6.1.0-9-amd64", "linux-headers-6.1.0-9-common"),
        ),
        (
            ["linux-headers-6.1.0-9-cloud-amd64", "linux-headers-6.1.0-9-common"],
            ("linux-headers-6.1.0-9-cloud-amd64", "linux-headers-6.1.0-9-common"),
        ),
        (
            ["linux-headers-6.8.0-31", "linux-headers-6.8.0-31-generic"],
            ("linux-headers-6.8.0-31-generic", "linux-headers-6.8.0-31"),
        ),
        (
            [f"linux-headers-6.1.0-{n}-{kind}" for n in (9, 10) for kind in ("amd64", "common")],
            ("linux-headers-6.1.0-10-amd64", "linux-headers-6.1.0-10-common"),
        ),
        (["linux-headers-6.1.0-9-amd64"], None),
        (["linux-headers-6.1.0-9-common"], None),
        (["python3.11"], None),
        ([], None),
    ],
)
def test_the_newest_whole_pair_of_headers_is_taken(
    names: list[str], pair: tuple[str, str] | None
) -> None:
    assert pair_of(names) == pair


def test_the_merged_tree_has_the_files_of_both(tmp_path: Path) -> None:
    for name, files in {
        "linux-headers-1-amd64": ["include/generated/a.h", "arch/x86/include/generated/b.h"],
        "linux-headers-1-common": ["include/linux/c.h", "arch/x86/include/asm/d.h", "Makefile"],
    }.items():
        for file in files:
            path = tmp_path / "src" / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name)
    tree = merged_tree(tmp_path / "cache", tmp_path / "src")
    for file in ("include/generated/a.h", "arch/x86/include/generated/b.h"):
        assert (tree / file).read_text() == "linux-headers-1-amd64"
    for file in ("include/linux/c.h", "arch/x86/include/asm/d.h"):
        assert (tree / file).read_text() == "linux-headers-1-common"
    assert not (tree / "Makefile").exists()
    assert merged_tree(tmp_path / "cache", tmp_path / "src") == tree


def test_no_headers_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    for sources in (tmp_path, tmp_path / "gone"):
        with pytest.raises(ProbeUnavailable, match="install linux-headers"):
            merged_tree(tmp_path / "cache", sources)


@pytest.mark.parametrize(
    ("mounts", "place"),
    [
        ("none /mnt/b bpf rw 0 0\nbpf /sys/fs/bpf bpf rw 0 0\n", "/sys/fs/bpf"),
        ("none /mnt/b bpf rw 0 0\n", "/mnt/b"),
        ("bpf /sys/fs/bpf tmpfs rw 0 0\n", None),
        ("", None),
    ],
)
def test_bpffs_is_what_is_mounted_as_such(mounts: str, place: str | None) -> None:
    assert bpffs_of(mounts) == (Path(place) if place else None)


@pytest.mark.parametrize(
    ("text", "count"), [("0\n", 1), ("0-3\n", 4), ("0,2-5\n", 6), ("0-1,7\n", 8)]
)
def test_per_cpu_values_reach_to_the_last_possible_cpu(text: str, count: int) -> None:
    assert possible_cpus(text) == count


def test_a_set_is_named_by_its_source_and_without_a_dot() -> None:
    text = hooks.source_text()
    assert set_name(text) == set_name(text)
    assert len({set_name(text), set_name(text + " "), set_name(text, frozenset({"btf"}))}) == 3
    assert "." not in set_name(text)


def test_every_number_of_the_source_is_defined_from_python() -> None:
    text = hooks.source_text()
    assert "#define GATEWAY_IPV4 0xac80001" in text
    assert "#define VIRTUAL_IPV4_MASK 0xfffe0000" in text
    assert "#define PROXY_PORT 0xc38" in text
    assert text.count("#line 1 ") == len(hooks.FILES)


VERIFIER = """0: R1=ctx(off=0,imm=0) R10=fp0
0: (bf) r7 = r1                       ; R1=ctx
1: (79) r1 = *(u64 *)(r7 +8)
invalid bpf_context access off=8 size=8
processed 2 insns (limit 1000000) max_states_per_insn 0 total_states 0
"""


@pytest.mark.parametrize(
    ("log", "lines"),
    [
        (
            VERIFIER,
            ("invalid bpf_context access off=8 size=8", "1: (79) r1 = *(u64 *)(r7 +8)"),
        ),
        ("unknown func bpf_x#187\n", ("unknown func bpf_x#187", "")),
        ("", ("the verifier gave no reason", "")),
    ],
)
def test_the_verifier_is_quoted_in_two_lines(log: str, lines: tuple[str, str]) -> None:
    assert verifier_lines(log) == lines


def test_the_compiler_is_quoted_by_its_first_error() -> None:
    text = "bpf/a.c:1:1: warning: w\nbpf/a.c:2:3: error: e\nbpf/a.c:4:1: error: later\n"
    assert compiler_line(text) == "bpf/a.c:2:3: error: e"
    assert compiler_line("") == ""

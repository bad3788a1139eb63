"""A fresh checkout, its launchers and the wheel."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import zipfile
from typing import TYPE_CHECKING

import pytest

from tests.support.lab import CHECKOUT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# What git would bring, without asking git: tests may run from an export.
PARTS = ("netns_runtime", "bpf", "scripts", "tests", "netns-run", "netns-debug")
FILES = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE")


def call(*words: object, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # type: ignore[call-overload,no-any-return]
        [str(word) for word in words],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        **{"timeout": 300, **options},
    )


@pytest.fixture
def checkout(tmp_path: Path) -> Iterator[Path]:
    """A copy without .venv."""
    place = tmp_path / "a checkout"
    place.mkdir()
    skipped = shutil.ignore_patterns("__pycache__", "*.egg-info", "node_modules")
    for name in (*PARTS, *FILES):
        source = CHECKOUT / name
        if source.is_dir():
            shutil.copytree(source, place / name, ignore=skipped)
        elif source.exists():
            shutil.copy(source, place / name)
    yield place
    shutil.rmtree(place)


def test_a_fresh_checkout_makes_what_it_needs_and_says_so(checkout: Path) -> None:
    first = call(checkout / "scripts/bootstrap", "run", cwd="/")
    assert first.returncode == 0, first
    assert first.stdout == ""
    assert "netns-run: making .venv" in first.stderr
    imports = "import netns_runtime, trio, pyroute2, bcc, nftables, seccomp"
    imports += "; print(netns_runtime.__file__)"
    python = checkout / ".venv/bin/python"
    assert call(python, "-I", "-c", imports, cwd="/").stdout.startswith(str(checkout))

    again = call(checkout / "scripts/bootstrap", "run", cwd="/")
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")

    (checkout / ".venv/.making").touch()
    (checkout / ".venv/.ready-run").unlink()
    (checkout / ".venv/bin/python").unlink()
    healed = call(checkout / "scripts/bootstrap", "run", cwd="/")
    assert "netns-run: making .venv" in healed.stderr, "a broken environment was kept"
    assert call(python, "-I", "-c", imports, cwd="/").stdout.startswith(str(checkout))

    moved = checkout.with_name("moved")
    checkout.rename(moved)
    try:
        there = call(moved / "scripts/bootstrap", "run", cwd="/")
        assert "netns-run: making .venv" in there.stderr, "the old place is still in its scripts"
    finally:
        moved.rename(checkout)


def test_two_bootstraps_at_once_do_not_collide(checkout: Path) -> None:
    script = checkout / "scripts/bootstrap"
    both = [subprocess.Popen([script, "run"], stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [one.communicate(timeout=300)[1] for one in both]
    assert [one.returncode for one in both] == [0, 0], said
    assert sum("making .venv" in text for text in said) == 1, said


def test_an_up_to_date_bootstrap_costs_next_to_nothing() -> None:
    script = str(CHECKOUT / "scripts/bootstrap")
    subprocess.run([script, "run"], check=True)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run([script, "run"], check=True)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.010, times


def test_a_bootstrap_that_cannot_install_ends_with_one_clear_line(checkout: Path) -> None:
    env = {**os.environ, "PIP_INDEX_URL": "file:///nonexistent", "PIP_EXTRA_INDEX_URL": ""}
    env |= {"PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": os.devnull}
    for launcher in ("scripts/bootstrap", "netns-run"):
        words = ["run"] if launcher == "scripts/bootstrap" else ["--", "true"]
        done = call(checkout / launcher, *words, env=env)
        assert done.returncode == 125, done
        last = done.stderr.splitlines()[-1]
        assert last.startswith("netns-run: pip cannot install"), done.stderr
        assert not (checkout / ".venv/.ready-run").exists()


def test_the_wheel_has_the_sources_of_the_probe_and_both_commands(
    checkout: Path, tmp_path: Path
) -> None:
    build = ("-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path)
    done = call(sys.executable, *build, checkout)
    assert done.returncode == 0, done
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    sources = {f"netns_runtime/bpf/{path.name}" for path in (CHECKOUT / "bpf").glob("*.[ch]")}
    assert sources
    assert sources <= names
    modules = {
        str(path.relative_to(CHECKOUT)) for path in (CHECKOUT / "netns_runtime").rglob("*.py")
    }
    assert modules <= names
    assert not [name for name in names if name.startswith("tests")]
    (entry,) = (name for name in names if name.endswith("entry_points.txt"))
    entries = zipfile.ZipFile(wheel).read(entry).decode()
    assert "netns-run = " in entries
    assert "netns-debug = " in entries

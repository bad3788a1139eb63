"""The import table of ARCHITECTURE.md: who may know whom."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "netns_runtime"
STAGES = ("debug", "firewall", "namespace", "policy", "presets", "probes", "proxy", "wire")
# Beyond its own: what a stage may import. Pure vocabulary at the top of the package is for all.
ALLOWED = {
    # It reads what the others recorded; proxy/ alone is out of bounds, as it is told by its events.
    "debug": {
        *("cli.text", "control", "counts", "namespace", "firewall", "policy", "probes", "state"),
        *("processes", "presets", "wire", "doctor"),
    },
    "firewall": set(),
    "namespace": set(),
    "policy": set(),
    "presets": set(),
    "probes": set(),
    "proxy": {"policy", "probes.owners", "wire"},
    "wire": set(),
}
VOCABULARY = {
    "address",
    "audit",
    "config",
    "errors",
    "events",
    "layout",
    "owner",
    "recent",
    "screening",
    "secret",
    "spec",
}
ONLY_IN = {
    "pyroute2": {"namespace/netlink.py"},
    "nftables": {"firewall/nft.py"},
    "bcc": {"probes/load.py"},
    "seccomp": {"namespace/seccomp.py", "proxy/privileges.py"},
}


def imports_of(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            if node.module == "netns_runtime":
                found.update(f"netns_runtime.{alias.name}" for alias in node.names)
    return found


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_knows_only_itself_and_the_vocabulary(stage: str) -> None:
    for path in (PACKAGE / stage).rglob("*.py"):
        for name in imports_of(path):
            if not name.startswith("netns_runtime.") or name.startswith(f"netns_runtime.{stage}"):
                continue
            rest = name.removeprefix("netns_runtime.")
            permitted = rest.split(".")[0] in VOCABULARY or any(
                rest == allowed or rest.startswith(f"{allowed}.") for allowed in ALLOWED[stage]
            )
            assert permitted, f"{path.relative_to(PACKAGE)} imports {name}"


@pytest.mark.parametrize("binding", ONLY_IN)
def test_a_binding_is_imported_in_its_one_place(binding: str) -> None:
    users = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if any(name.split(".")[0] == binding for name in imports_of(path))
    }
    assert users <= ONLY_IN[binding]
    assert users, f"nobody imports {binding}: the table is out of date"


def test_nothing_under_wire_awaits() -> None:
    for path in (PACKAGE / "wire").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        waits = [
            node for node in ast.walk(tree) if isinstance(node, (ast.Await, ast.AsyncFunctionDef))
        ]
        assert not waits, path.name


def test_no_file_of_the_package_is_two_things() -> None:
    for path in PACKAGE.rglob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 400, path.name

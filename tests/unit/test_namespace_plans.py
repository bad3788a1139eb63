"""Links and cgroups as plans: what would be done, without doing it."""

from __future__ import annotations

from pathlib import Path

from netns_runtime.namespace.cgroup import find_hierarchies
from netns_runtime.namespace.netlink import link_plan

HYBRID = """\
tmpfs /sys/fs/cgroup tmpfs rw 0 0
cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,cpu,cpuacct 0 0
cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0
cgroup /sys/fs/cgroup/pids cgroup rw,pids 0 0
cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0
"""
PURE = "cgroup2 /sys/fs/cgroup cgroup2 rw,nsdelegate 0 0\n"


def test_finds_the_unified_hierarchy_of_a_hybrid_layout() -> None:
    found = find_hierarchies(HYBRID)
    assert found is not None
    assert found.parent == Path("/sys/fs/cgroup/unified/netns-runtime")
    assert set(found.version1) == {"memory", "pids"}


def test_finds_the_unified_hierarchy_where_it_is_alone() -> None:
    found = find_hierarchies(PURE)
    assert found is not None
    assert found.unified == Path("/sys/fs/cgroup")
    assert found.version1 == {}


def test_finds_nothing_where_there_is_no_cgroup_v2() -> None:
    assert find_hierarchies("cgroup /sys/fs/cgroup/pids cgroup rw,pids 0 0\n") is None


def test_a_mount_point_with_a_space_is_read_as_the_kernel_writes_it() -> None:
    found = find_hierarchies("none /mnt/a\\040b cgroup2 rw 0 0\n")
    assert found is not None
    assert found.unified == Path("/mnt/a b")


def test_every_operation_happens_inside_and_says_what_it_does() -> None:
    for operation in link_plan():
        assert operation.place in ("sandbox", "gateway")
        assert operation.describe().startswith(f"{operation.place}: ")


def test_without_ipv6_nothing_of_ipv6_is_touched() -> None:
    assert not [op for op in link_plan(has_ipv6=False) if "v6" in op.text or "::" in op.text]


def test_the_gateway_has_no_route_out() -> None:
    routes = [op.text for op in link_plan() if op.place == "gateway" and op.verb == "route"]
    assert not [text for text in routes if " via " in text]
    assert "ip route add local 0.0.0.0/0 dev lo" in routes

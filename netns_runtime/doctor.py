"""Can a sandbox start here, and what would it lack? Asked by trying, in namespaces that vanish.

Each check is one value: a feature, whether it is there, what was seen, and the remedy. A missing
needed feature means that no sandbox can start; a missing wanted one is told with what it costs.
"""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from netns_runtime import layout
from netns_runtime.capable import check_capable
from netns_runtime.errors import NetnsError
from netns_runtime.namespace import cgroup, netns
from netns_runtime.namespace.netlink import apply_links, kernel_has_ipv6, link_plan

if TYPE_CHECKING:
    from collections.abc import Callable

Need = Literal["needed", "wanted"]


@dataclass(frozen=True, slots=True)
class Check:
    """One feature. `detail` is what was seen; `remedy` is empty where nothing is missing."""

    feature: str
    is_present: bool
    need: Need
    detail: str
    remedy: str = ""


def _attempt(feature: str, need: Need, trial: Callable[[], str], remedy: str) -> Check:
    try:
        return Check(feature, True, need, trial())
    except NetnsError as error:
        return Check(feature, False, need, error.what, error.remedy or remedy)
    except OSError as error:
        return Check(feature, False, need, str(error), remedy)
    except ImportError as error:
        return Check(feature, False, need, str(error), remedy)


def _root() -> str:
    check_capable()
    return "uid 0, with the capabilities that a sandbox takes"


def _cgroup() -> str:
    where = cgroup.hierarchies()
    where.parent.mkdir(exist_ok=True)
    return str(where.unified)


def _bubblewrap() -> str:
    found = shutil.which("bwrap", path="/usr/bin:/bin")
    if found is None:
        raise FileNotFoundError("no bwrap in /usr/bin")
    return found


def _seccomp() -> str:
    from netns_runtime.namespace.seccomp import filters_of

    return f"{sum(map(len, filters_of())) // 8} instructions"


def _gateway(*, redirect: bool = False) -> str:
    from netns_runtime.firewall import nft
    from netns_runtime.firewall.ruleset import gateway_ruleset

    with ExitStack() as stack:
        gateway = stack.enter_context(netns.create_namespace("gateway namespace"))
        sandbox = stack.enter_context(netns.create_namespace("sandbox namespace"))
        apply_links(link_plan(has_ipv6=kernel_has_ipv6()), sandbox_fd=sandbox, gateway_fd=gateway)
        netns.run_in(gateway, lambda: nft.load(gateway_ruleset(redirect=redirect)))
    return "namespaces, veth pair and nft rules were made, read back and removed"


def _redirect() -> str:
    _gateway(redirect=True)
    return "nft takes tproxy rules"


def _run_directory() -> str:
    from netns_runtime import state

    state.prepare()
    return str(layout.RUN_DIR)


def _ipv6() -> str:
    if not kernel_has_ipv6():
        raise OSError("the kernel has no IPv6, or was started with ipv6.disable=1")
    return "on"


def _probe() -> str:
    from netns_runtime.probes.pins import ensure_probe

    cgroup.hierarchies()
    with ensure_probe() as probe:
        return f"loaded, pinned in {probe.directory}"


_WITHOUT_PROBE = "nft refuses and counts alone: refused connects are not attributed to a process"


def checks() -> list[Check]:
    """Every check, in the order a launch meets them."""
    root = _attempt("root", "needed", _root, "run it with sudo")
    if not root.is_present:
        # Nothing else can be tried, and would only seem to be missing.
        return [root]
    found = [
        root,
        _attempt("state directory", "needed", _run_directory, "free some space on /run"),
        _attempt("cgroup v2", "needed", _cgroup, "mount a cgroup2 file system"),
        _attempt("bubblewrap", "needed", _bubblewrap, "apt-get install bubblewrap"),
        _attempt("seccomp", "needed", _seccomp, "apt-get install python3-seccomp"),
        _attempt("gateway", "needed", _gateway, "the kernel needs veth and nf_tables"),
        _attempt(
            "redirect", "wanted", _redirect, "--redirect off: who ignores the proxy is refused"
        ),
        _attempt("IPv6", "wanted", _ipv6, "sandboxes have IPv4 alone"),
        _attempt("probe", "wanted", _probe, _WITHOUT_PROBE),
    ]
    return found + _probe_features()


def _probe_features() -> list[Check]:
    from netns_runtime.probes.features import features

    return [
        Check(
            f"probe: {feature.name}",
            feature.present,
            "wanted",
            "there" if feature.present else feature.loses or _WITHOUT_PROBE,
            "" if feature.present else feature.remedy,
        )
        for feature in features()
    ]

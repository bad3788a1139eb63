"""Policy: which hosts, ports, addresses and executables a sandbox may use, and why not.

`read_policy` reads an OpenShell policy file (`load_policy` its bytes) and `parse_allow` an
`--allow`; both give rules, which `Policy.merged` puts together and `decide` judges a target by;
requests.py judges the requests and messages of a flow that it allowed.
`identify_binaries` ties `binaries` to inodes at launch. Wrong input ends in one `UsageError`; a
refusal is a `Decision`, never an exception.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from netns_runtime.policy.allow import parse_allow
from netns_runtime.policy.decision import Decision, decide
from netns_runtime.policy.rules import EMPTY, Binary, Endpoint, Identity, Inspection, Policy, Rule

if TYPE_CHECKING:
    from netns_runtime.policy.binaries import identify_binaries
    from netns_runtime.policy.file import read_policy
    from netns_runtime.policy.load import load_policy
    from netns_runtime.policy.reach import Reach

__all__ = [
    "EMPTY",
    "Binary",
    "Decision",
    "Endpoint",
    "Identity",
    "Inspection",
    "Policy",
    "Reach",
    "Rule",
    "decide",
    "identify_binaries",
    "load_policy",
    "parse_allow",
    "read_policy",
]

# Reading YAML and walking the file system are no part of a launch that has only `--allow`.
_LAZY = {
    "Reach": "netns_runtime.policy.reach",
    "load_policy": "netns_runtime.policy.load",
    "read_policy": "netns_runtime.policy.file",
    "identify_binaries": "netns_runtime.policy.binaries",
}


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(name)
    from importlib import import_module

    return getattr(import_module(_LAZY[name]), name)

"""What a sandbox decides by at this moment, for netns-debug: its policy and the kernel's counters.

The policy travels pickled, to a reader that is root as its sender is; a reader of another version
that cannot read it goes by the files that the state record names.
"""

from __future__ import annotations

import base64
import pickle
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from netns_runtime.policy import Policy
    from netns_runtime.refusals import Refusals


@dataclass(slots=True)
class Situation:
    """`policy` is replaced with each swap. It binds secrets by name and holds no value."""

    policy: Policy
    refusals: Refusals
    report: bool

    def told(self, *, redirect: bool) -> dict[str, Any]:
        """The answer to {"command": "situation"}, events aside (debug.live.InForce)."""
        policy = pickle.dumps(replace(self.policy))
        return {
            "policy": base64.b64encode(policy).decode("ascii"),
            "redirect": redirect,
            "report": self.report,
            **self.refusals.situation(),
        }

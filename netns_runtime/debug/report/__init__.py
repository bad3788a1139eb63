"""`netns-debug report`: what happened in a sandbox, as one page that a person can look at.

Evidence becomes a `Story` (frozen values of printable ASCII, bounded in number), and a Story HTML;
both steps are pure and give the same for the same audit. `command` gets the evidence and
`output` writes the page, whole or not at all. Ends with 0, or in one NetnsError.
"""

from netns_runtime.debug.report.command import USAGE, main

__all__ = ["USAGE", "main"]

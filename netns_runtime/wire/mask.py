"""All that masks: values found in what upstream sends (reflection), and whole responses (response).

One name to import from; nothing else is here.
"""

from __future__ import annotations

from netns_runtime.wire.reflection import Masker, mask, mask_headers
from netns_runtime.wire.response import ResponseMasker, accept_encoding, response_masker

__all__ = [
    "Masker",
    "ResponseMasker",
    "accept_encoding",
    "mask",
    "mask_headers",
    "response_masker",
]

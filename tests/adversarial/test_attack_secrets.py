"""The value asked for in clear text, through a rule that allows TLS alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.secret_policy import TOKEN, policy_in
from tests.support.secret_run import placeholder, run_with_secrets, value_of

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.lab import Lab

HELD = placeholder(TOKEN)
CLEAR = f"""
import socket, sys
plain = socket.create_connection(("web.lab.test", 443) if sys.argv[1] == "redirected"
                                 else ("10.200.0.1", 3128))
target = "/" if sys.argv[1] == "redirected" else "http://web.lab.test:443/"
plain.sendall(f"GET {{target}} HTTP/1.1\\r\\nHost: web.lab.test:443\\r\\nX-Token: {HELD}\\r\\n"
              "Connection: close\\r\\n\\r\\n".encode())
print(plain.makefile("rb").read().decode("latin-1"))
"""


@pytest.mark.parametrize("entry", ["redirected", "explicit"])
@pytest.mark.parametrize("options", [(), ("--report",)], ids=["enforced", "report"])
def test_a_value_never_leaves_in_clear_text_by_a_rule_for_443(
    lab: Lab, tmp_path: Path, entry: str, options: tuple[str, ...]
) -> None:
    told = run_with_secrets(
        lab,
        {TOKEN: value_of(TOKEN)},
        *("--policy", policy_in(tmp_path), *options),
        cmd=["/usr/bin/python3", "-c", CLEAR, entry],
    )
    assert told.substituted() == set(), told.result.told()
    [withheld] = told.result.events("secret.withheld")
    assert "unencrypted" in withheld["detail"], told.result.told()

"""Somebody else answers for the host: no certificate but a valid one gets the token or a request.

CMD gets a 502 that names the reason as upstream's, whichever protocol it speaks; nothing is sent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.secret_policy import TOKEN, policy_in
from tests.support.secret_run import placeholder, run_with_secrets, value_of

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.lab import Lab

HELD = placeholder(TOKEN)
WORDS = {
    "expired": "expired",
    "not-yet": "not valid yet",
    "selfsigned": "self-signed",
    "wronghost": "wronghost.lab.test",
    "unknown-issuer": "authority that is not known",
}


@pytest.mark.parametrize("entry", ["explicit", "redirected"])
@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
@pytest.mark.parametrize("kind", WORDS)
def test_a_certificate_that_is_not_valid_gets_nothing(
    lab: Lab, tmp_path: Path, kind: str, version: str, entry: str
) -> None:
    values = {TOKEN: value_of(TOKEN)}
    host = f"{kind}.lab.test"
    direct = ["--noproxy", "*"] if entry == "redirected" else []
    command = [
        "curl",
        "-sS",
        "-i",
        "--suppress-connect-headers",
        version,
        *direct,
        "-H",
        f"Authorization: Bearer {HELD}",
    ]
    told = run_with_secrets(
        *(lab, values, "--policy", policy_in(tmp_path)), cmd=[*command, f"https://{host}/"]
    )
    assert lab.requests_seen() == [], told.result.told()
    head = told.result.stdout.lower()
    assert " 502" in head.splitlines()[0], told.result.told()
    assert "tls_certificate_error" in head, told.result.told()
    assert WORDS[kind] in head, told.result.told()
    assert told.result.events("secret.substituted") == [], told.result.told()
    said = [
        line
        for line in told.result.audit
        if line.get("said_by") == "upstream" and line.get("host") == host
    ]
    assert said, told.result.told()
    assert {line["reason"] for line in said if "reason" in line} == {"tls_certificate_error"}


def test_report_mode_does_not_lift_the_certificate_check(lab: Lab, tmp_path: Path) -> None:
    command = ["curl", "-sS", "-H", f"X-Token: {HELD}", "https://expired.lab.test/"]
    told = run_with_secrets(
        *(lab, {TOKEN: value_of(TOKEN)}, "--report", "--policy", policy_in(tmp_path)), cmd=command
    )
    assert lab.requests_seen() == [], told.result.told()


def test_report_mode_does_not_lift_a_secrets_binding(lab: Lab, tmp_path: Path) -> None:
    values = {TOKEN: value_of(TOKEN)}
    command = ["curl", "-sS", "-H", f"X-Token: {HELD}", "https://v4.lab.test/"]
    told = run_with_secrets(
        *(lab, values, "--report", "--policy", policy_in(tmp_path)), cmd=command
    )
    assert lab.requests_seen() != [] or lab.connections_seen() != [], told.result.told()
    for seen in lab.requests_seen():
        assert values[TOKEN] not in str(seen), told.result.told()

"""A policy with one secret in every kind of slot, for tests that ask for it elsewhere.

web, h2 and ws.lab.test may have it; the other hosts are allowed and may not. `policy_in` writes the
file where CMD cannot.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

TOKEN: Final = "LAB_TOKEN"
LONGER: Final = "LAB_TOKEN_2"
"""Another secret, whose placeholder begins with the first one's. Bound to `api.lab.test` alone."""

_POLICY: Final = """\
version: 1
network_policies:
  lab:
    endpoints:
      - {host: web.lab.test, port: 443, protocol: rest, access: full}
      - {host: h2.lab.test, port: 443, protocol: rest, access: full}
      - {host: ws.lab.test, port: 443, protocol: websocket, access: full}
      - {host: other.test, port: 443, protocol: rest, access: full}
      - {host: api.lab.test, port: 443, protocol: rest, access: full}
      - {host: expired.lab.test, port: 443, protocol: rest, access: full}
      - {host: not-yet.lab.test, port: 443, protocol: rest, access: full}
      - {host: selfsigned.lab.test, port: 443, protocol: rest, access: full}
      - {host: wronghost.lab.test, port: 443, protocol: rest, access: full}
      - {host: unknown-issuer.lab.test, port: 443, protocol: rest, access: full}
secrets:
  LAB_TOKEN:
    hosts:
      - web.lab.test
      - h2.lab.test
      - ws.lab.test
      - expired.lab.test
      - not-yet.lab.test
      - selfsigned.lab.test
      - wronghost.lab.test
      - unknown-issuer.lab.test
    slots:
      - header: authorization
      - header: x-token
      - basic: password
      - query: token
      - path: 1
      - form: token
      - json: /token
      - json: /deep/0/token
      - websocket: /d/token
        when: {pointer: /op, in: [2, 6]}
    codings: [gzip]
    expose: placeholder
  LAB_TOKEN_2:
    hosts: [api.lab.test]
    slots:
      - header: authorization
    expose: placeholder
"""


def policy_in(directory: Path) -> str:
    """The path of the policy, in a directory of root's."""
    path = directory / "secrets.yaml"
    path.write_text(_POLICY)
    path.chmod(0o644)
    return str(path)

"""`python -I -m netns_runtime.proxy FD [ca]`: the proxy process, FD being its control socket.

With `ca` it makes a certificate authority first of all, since CMD's files wait for its certificate.
It ends with status 0 when told to stop or when its supervisor has ended, and with 1 and one line on
stderr where it cannot start.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from netns_runtime.errors import NetnsError

if TYPE_CHECKING:
    from netns_runtime.proxy.ca import Authority


def main(control: int, *words: str) -> int:
    """The exit status. `words` are what follows the descriptor."""
    authority: Authority | None = None
    if words == ("ca",):
        from netns_runtime.proxy.birth import announced_authority

        authority = announced_authority(control)
    # After that: importing the proxy takes longer than making an authority.
    from netns_runtime.proxy.server import main as serve

    return serve(control, authority)


if __name__ == "__main__":
    try:
        status = main(int(sys.argv[1]), *sys.argv[2:])
    except NetnsError as error:
        sys.stderr.write(f"netns-run: {error}\n")
        status = 1
    except KeyboardInterrupt:
        status = 0
    sys.exit(status)

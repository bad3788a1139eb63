"""`python -I -m netns_runtime.proxy FD`: the proxy process, FD being its control socket.

It ends with status 0 when told to stop or when its supervisor has ended, and with 1 and one line on
stderr where it cannot start.
"""

from __future__ import annotations

import sys

from netns_runtime.errors import NetnsError
from netns_runtime.proxy.server import main

if __name__ == "__main__":
    try:
        status = main(int(sys.argv[1]))
    except NetnsError as error:
        sys.stderr.write(f"netns-run: {error}\n")
        status = 1
    except KeyboardInterrupt:
        status = 0
    sys.exit(status)

"""netns-run for `learn --requests`: TLS is terminated wherever no rule says `tls: skip`.

Only where the client speaks first, at ports 443 and 8443, so that the audit has the requests. It is
no option of netns-run: what terminates TLS there is the policy. Ends as netns-run does.
"""

from __future__ import annotations

import sys

from netns_runtime.cli.run import main

if __name__ == "__main__":
    sys.exit(main(inspect=True))

"""`netns-run`: reads the command line, runs the sandbox, and ends with its exit status.

Every error that a person can cause or mend is one line on stderr and exit status 125.
"""

from __future__ import annotations

import os
import sys

from netns_runtime import __version__
from netns_runtime.cli.options import USAGE, parse_command_line
from netns_runtime.cli.text import internal_error
from netns_runtime.errors import EXIT_FAILED, NetnsError


def main() -> int:
    """The process: its value is the exit status."""
    try:
        return _run(sys.argv[1:])
    except NetnsError as error:
        from netns_runtime.supervise import complain

        complain(str(error))
        return error.status
    except KeyboardInterrupt:
        return 128 + 2
    except BrokenPipeError:
        return EXIT_FAILED
    except Exception as error:
        return internal_error("netns-run", error)


def _run(words: list[str]) -> int:
    spec = parse_command_line(words)
    if isinstance(spec, str):
        sys.stdout.write(f"netns-run {__version__}\n" if spec == "--version" else USAGE)
        return 0
    from netns_runtime.request import resolve

    with resolve(spec, os.environ) as request:
        if spec.verbose:
            from netns_runtime.supervise import complain

            for note in request.policy.notes:
                complain(note)
        if spec.dry_run:
            from netns_runtime.cli.dry_run import show

            show(request)
            return 0
        from netns_runtime.runtime import run

        return run(request)


if __name__ == "__main__":
    sys.exit(main())

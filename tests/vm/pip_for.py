"""pip, as if it ran on another Python: `python pip_for.py 3.13 download …`.

`pip download --python-version` chooses wheels for that Python but judges environment markers by the
one it runs on (a known limit of pip): what is needed `; python_version >= "3.13"` would be missing.
Where pip's own parts have other names than those used here, it ends with AttributeError.
"""

from __future__ import annotations

import sys

from pip._internal.cli.main import main
from pip._vendor.packaging import markers

_here = markers.default_environment


def _there() -> dict[str, str]:
    return {**_here(), "python_version": _VERSION, "python_full_version": f"{_VERSION}.0"}


if __name__ == "__main__":
    _VERSION = sys.argv[1]
    markers.default_environment = _there
    sys.exit(main(sys.argv[2:]))
